import { expect, test } from "vitest";
import { fromDrop, fromFiles } from "./dropped";

type Tree = { [name: string]: Tree | string };

/** What a browser gives for a dropped tree; a directory's reader hands out at most two entries at a time. */
function entry(name: string, content: Tree | string): FileSystemEntry {
  if (typeof content === "string") {
    const file = (done: (file: File) => void) => done(new File([content], name));
    return { isFile: true, isDirectory: false, name, file } as unknown as FileSystemEntry;
  }
  const createReader = () => {
    const left = Object.entries(content).map(([child, below]) => entry(child, below));
    return { readEntries: (done: (some: FileSystemEntry[]) => void) => done(left.splice(0, 2)) };
  };
  return { isFile: false, isDirectory: true, name, createReader } as unknown as FileSystemEntry;
}

function drop(items: (FileSystemEntry | null)[], files: File[] = []): DataTransfer {
  const list = items.map((one) => ({ kind: "file", webkitGetAsEntry: () => one }));
  return {
    items: [...list, { kind: "string", webkitGetAsEntry: () => null }],
    files,
  } as unknown as DataTransfer;
}

test("every file below every dropped folder comes with its path, empty folders too", async () => {
  const project = {
    "one.txt": "1",
    src: { "a.py": "aa", "b.py": "bbb", deep: { "c.py": "c" } },
    empty: {},
    "z.txt": "",
  };
  const dropped = await fromDrop(drop([entry("project", project), entry("loose.txt", "loose")]));
  expect(dropped.sources.map(({ path, size }) => [path, size])).toEqual([
    ["project/one.txt", 1],
    ["project/src/a.py", 2],
    ["project/src/b.py", 3],
    ["project/src/deep/c.py", 1],
    ["project/z.txt", 0],
    ["loose.txt", 5],
  ]);
  expect(dropped.folders).toEqual(["project", "project/src", "project/src/deep", "project/empty"]);
});

test("a file is read in the pieces that are asked for", async () => {
  const { sources } = await fromDrop(drop([entry("letters", "abcdef")]));
  expect(new TextDecoder().decode(await sources[0]?.slice(2, 4))).toBe("cd");
});

test("without entries the dropped files themselves are taken", async () => {
  const dropped = await fromDrop(drop([null], [new File(["x"], "x.txt")]));
  expect(dropped.sources.map(({ path }) => path)).toEqual(["x.txt"]);
  expect(dropped.folders).toEqual([]);
});

test("a file that was chosen as a part of a folder keeps its place in it", () => {
  const file = new File(["x"], "x.txt");
  Object.defineProperty(file, "webkitRelativePath", { value: "folder/x.txt" });
  expect(fromFiles([file, new File([""], "y")]).map(({ path }) => path)).toEqual(["folder/x.txt", "y"]);
});

test("a folder that cannot be read fails the drop instead of leaving files out", async () => {
  const closed = entry("closed", {});
  Object.assign(closed, {
    createReader: () => ({
      readEntries: (_done: unknown, failed: (error: Error) => void) => failed(new Error("closed")),
    }),
  });
  await expect(fromDrop(drop([entry("fine.txt", "x"), closed]))).rejects.toThrow("closed");
});
