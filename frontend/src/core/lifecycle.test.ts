import { expect, test } from "vitest";
import { acts, idleAfter, others, primary, restorable, warning } from "./lifecycle";
import { sample } from "./sandboxes.sample";

const ALL = new Set([
  "sandbox.view",
  "sandbox.use",
  "sandbox.suspend",
  "sandbox.resume",
  "sandbox.fork",
  "sandbox.restore",
  "sandbox.start",
  "sandbox.stop",
  "sandbox.extend",
  "sandbox.delete",
]);
const VIEWER = new Set(["sandbox.view"]);

test("the server's next step is what to press", () => {
  expect(primary(sample(), ALL)).toBe("open");
  expect(primary(sample({ state: "suspended", next_step: "resume" }), ALL)).toBe("resume");
  expect(primary(sample({ state: "stopped", next_step: "start" }), ALL)).toBe("start");
  expect(
    primary(
      sample({ state: "deleted", next_step: "restore", restorable_until: "2026-11-26T10:00:00Z" }),
      ALL,
    ),
  ).toBe("restore");
  expect(primary(sample({ state: "stopping" }), ALL)).toBeNull();
});

test("a running workspace can be suspended, forked and stopped; a viewer only looks", () => {
  expect(others(sample(), ALL)).toEqual(["suspend", "fork", "stop", "rename", "details", "delete"]);
  expect(acts(sample(), VIEWER)).toEqual(["details"]);
});

test("a sandbox is suspended and extended only where it has a deadline, and never as a connection's own", () => {
  const timed = sample({ kind: "sandbox", stop_at: "2026-11-25T12:00:00Z" });
  expect(acts(timed, ALL)).toContain("suspend");
  expect(acts(timed, ALL)).toContain("extend");
  expect(acts(sample({ kind: "sandbox", session: true }), ALL)).not.toContain("suspend");
  expect(acts({ ...timed, session: true }, ALL)).not.toContain("suspend");
});

test("a machine that does not answer can be stopped, but neither suspended nor forked", () => {
  const lost = acts(sample({ unresponsive: true }), ALL);
  expect(lost).toContain("stop");
  expect(lost).not.toContain("suspend");
  expect(lost).not.toContain("fork");
});

test("a stopped sandbox cannot be started, and a deleted one only within its day be restored", () => {
  expect(primary(sample({ kind: "sandbox", state: "stopped" }), ALL)).toBeNull();
  expect(acts(sample({ state: "deleted" }), ALL)).toEqual(["details"]);
});

test("whoever ends something is told what is kept, and for how long", () => {
  expect(warning("delete", sample())).toContain("for a day");
  expect(warning("delete", sample({ kind: "sandbox" }))).toContain("Nobody can bring it back");
  expect(warning("stop", sample())).toContain("suspend it instead");
  expect(warning("suspend", sample())).toBeNull();
  const deleted = sample({ state: "deleted", restorable_until: "2026-11-26T10:00:00Z" });
  expect(restorable(deleted, Date.parse("2026-11-25T22:00:00Z"))).toMatch(/\(12 h left\)$/);
  expect(restorable(deleted, Date.parse("2026-11-26T10:00:01Z"))).toBe("cannot be restored any more");
});

test("an idle time is said as people say it", () => {
  expect([0, 45, 90].map(idleAfter)).toEqual(["Never", "After 45 min", "After 1 h 30 min"]);
});
