import { expect, test } from "vitest";
import type { Sandbox } from "./api";
import { sample } from "./sandboxes.sample";
import { BEGINNING, type Input, next, scene, wakes } from "./scene";

function is(state: Sandbox["state"], change: Partial<Sandbox> = {}): Input {
  return { kind: "sandbox", sandbox: sample({ state, ...change }) };
}

/** Where the inputs lead, and how often the server was asked for a resume. */
function play(...inputs: Input[]) {
  let state = BEGINNING;
  let resumes = 0;
  for (const input of inputs) {
    const step = next(state, input);
    state = step.state;
    if (step.resume) resumes++;
  }
  const shown = scene(state);
  return { kind: shown.kind, phase: "phase" in shown ? shown.phase : null, resumes, shown };
}

test("a page that opens on a suspended machine resumes it at once, and only once", () => {
  expect(play(is("suspended"))).toMatchObject({ kind: "boot", phase: "resuming", resumes: 1 });
  expect(play(is("suspended"), is("suspended"))).toMatchObject({ resumes: 1 });
  expect(play(is("suspending"), is("suspended"))).toMatchObject({ resumes: 1 });
  expect(play(is("suspended"), { kind: "refused", why: "no room" }, is("suspended"))).toMatchObject({
    kind: "boot",
    phase: "suspended",
    resumes: 1,
    shown: { problem: "no room" },
  });
});

test("a machine that is suspended while one looks waits for the person, with its screens in sight", () => {
  const seen: Input[] = [is("running"), is("suspending"), is("suspended")];
  expect(play(is("running"), is("suspending"))).toMatchObject({ kind: "paused", phase: "suspending" });
  expect(play(...seen)).toMatchObject({ kind: "paused", phase: "suspended", resumes: 0 });
  expect(play(...seen, { kind: "press" })).toMatchObject({ kind: "paused", phase: "resuming", resumes: 1 });
  expect(play(...seen, { kind: "press" }, { kind: "press" })).toMatchObject({ resumes: 1 });
  expect(play(...seen, { kind: "press" }, is("resuming"), is("running"))).toMatchObject({ kind: "work" });
});

test("keys pressed while it is being suspended, or runs, ask for nothing", () => {
  expect(play(is("running"), { kind: "press" })).toMatchObject({ resumes: 0 });
  expect(play(is("running"), is("suspending"), { kind: "press" })).toMatchObject({ resumes: 0 });
});

test("a refused resume says why and may be tried again", () => {
  const refused: Input[] = [
    is("running"),
    is("suspended"),
    { kind: "press" },
    { kind: "refused", why: "the spending cap is reached" },
  ];
  expect(play(...refused)).toMatchObject({
    kind: "paused",
    phase: "suspended",
    shown: { problem: "the spending cap is reached" },
  });
  expect(play(...refused, { kind: "press" })).toMatchObject({ resumes: 2, shown: { problem: "" } });
});

test("a resume that is put off says why, and may be tried again", () => {
  const seen: Input[] = [is("running"), is("suspended"), { kind: "press" }, is("resuming")];
  const note = "could not be resumed: the host has no room";
  expect(play(...seen, is("suspended", { note }))).toMatchObject({
    phase: "suspended",
    resumes: 1,
    shown: { problem: note },
  });
  expect(play(...seen, is("suspended"), { kind: "press" })).toMatchObject({ phase: "resuming", resumes: 2 });
  expect(play(is("running"), is("suspended", { note })).shown).toMatchObject({ problem: "" });
});

test("a suspended machine whose memory could not be loaded is a stopped one", () => {
  expect(play(is("running"), is("suspended"), { kind: "press" }, is("stopped"))).toMatchObject({
    kind: "boot",
    phase: "stopped",
    shown: { problem: "" },
  });
});

test("a deleted workspace can be restored from its own page, and comes back stopped", () => {
  const until = "2026-11-26T10:00:00Z";
  const gone = play(is("running"), is("deleted", { restorable_until: until }));
  expect(gone.shown).toMatchObject({ kind: "gone", restorable: { restorable_until: until } });
  expect(play(is("deleted")).shown).toMatchObject({ kind: "gone", restorable: null });
  expect(play(is("deleted", { restorable_until: until }), is("stopped"))).toMatchObject({ phase: "stopped" });
});

test("any key wakes that types something; those of the browser and of the focus do not", () => {
  const key = (name: string, change = {}) =>
    wakes({ key: name, ctrlKey: false, altKey: false, metaKey: false, repeat: false, ...change });
  expect(["a", " ", "Enter", "ArrowUp", "Escape"].map((name) => key(name))).toEqual(Array(5).fill(true));
  expect(["Tab", "Shift", "F5", "Control", "Meta"].map((name) => key(name))).toEqual(Array(5).fill(false));
  expect(key("r", { ctrlKey: true })).toBe(false);
  expect(key("a", { repeat: true })).toBe(false);
});
