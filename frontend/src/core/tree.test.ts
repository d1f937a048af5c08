import { expect, test } from "vitest";
import type { Entry } from "./files";
import { keyAction, rows, Tree } from "./tree";

const DISK: Record<string, string[]> = {
  "/app": ["src/", ".git/", "README.md"],
  "/app/src": ["lib/", "main.py"],
  "/app/src/lib": ["a.py"],
  "/app/.git": ["HEAD"],
};

async function list(directory: string): Promise<Entry[]> {
  const names = DISK[directory];
  if (!names) throw new Error("gone");
  return names.map((name) => ({ name: name.replace("/", ""), directory: name.endsWith("/"), link: false }));
}

async function tree(): Promise<Tree> {
  const made = new Tree("/app", list);
  await made.load("/app");
  return made;
}

const names = (made: Tree) => rows(made.state.value).map((row) => `${"-".repeat(row.depth)}${row.name}`);

test("directories are listed when they are opened, and hidden files can be hidden", async () => {
  const made = await tree();
  await made.expand("/app/src");
  expect(names(made)).toEqual(["src", "-lib", "-main.py", ".git", "README.md"]);
  made.toggleHidden();
  expect(names(made)).toEqual(["src", "-lib", "-main.py", "README.md"]);
});

test("keys walk the rows, open and close directories, and ask for what they stand for", async () => {
  const made = await tree();
  const act = (focus: string, key: string) => keyAction(rows(made.state.value), focus, key);
  expect(act("", "ArrowDown")).toEqual({ kind: "focus", path: "/app/src" });
  expect(act("/app/src", "ArrowRight")).toEqual({ kind: "expand", path: "/app/src" });
  await made.expand("/app/src");
  expect(act("/app/src", "ArrowRight")).toEqual({ kind: "focus", path: "/app/src/lib" });
  expect(act("/app/src/main.py", "ArrowLeft")).toEqual({ kind: "focus", path: "/app/src" });
  expect(act("/app/src", "Enter")).toEqual({ kind: "collapse", path: "/app/src" });
  expect(act("/app/README.md", "Enter")).toEqual({ kind: "open", path: "/app/README.md" });
  expect(act("/app/README.md", "F2")).toEqual({ kind: "rename", path: "/app/README.md" });
  expect(act("/app/README.md", "Delete")).toEqual({ kind: "remove", path: "/app/README.md" });
  expect(act("/app/src", "r")).toEqual({ kind: "focus", path: "/app/README.md" });
  expect(act("/app/README.md", "ArrowDown")).toEqual({ kind: "focus", path: "/app/README.md" });
});

test("a file deep below is revealed by opening what is above it", async () => {
  const made = await tree();
  await made.reveal("/app/src/lib/a.py");
  expect(names(made)).toContain("--a.py");
  expect(made.state.value.focus).toBe("/app/src/lib/a.py");
  expect(made.target).toBe("/app/src/lib");
});

test("a directory that is gone folds away at the next look", async () => {
  const made = new Tree("/app", list, ["/app/nowhere"]);
  await made.refresh();
  expect([...made.state.value.expanded]).toEqual([]);
});
