import { expect, test } from "vitest";
import { address, age, merged, reason } from "./sandboxes";
import { sample } from "./sandboxes.sample";

const ALL = new Set(["sandbox.use"]);

test("a deleted workspace moves to those that can be restored, and back", () => {
  const one = sample();
  const two = sample({ id: "sbx_loc_2", created_at: "2026-11-25T11:00:00Z" });
  const both = { live: [two, one], deleted: [] };
  const until = "2026-11-26T10:00:00Z";
  const deleted = { ...one, state: "deleted" as const, deleted_at: "2026-11-25T12:00:00Z" };
  const after = merged(both, { ...deleted, restorable_until: until });
  expect(after.live.map(({ id }) => id)).toEqual(["sbx_loc_2"]);
  expect(after.deleted.map(({ id }) => id)).toEqual(["sbx_loc_1"]);
  expect(merged(both, deleted).deleted).toEqual([]);
  const back = merged(after, { ...one, state: "stopped" });
  expect([back.live.length, back.deleted.length]).toEqual([2, 0]);
});

test("a name leads to the IDE where there is something to enter, else to what is known", () => {
  expect(address(sample({ state: "suspended" }), ALL)).toBe("/sandboxes/sbx_loc_1");
  expect(address(sample({ state: "stopped" }), ALL)).toBe("/sandboxes/sbx_loc_1");
  expect(address(sample({ kind: "sandbox", state: "stopped" }), ALL)).toBe("/sandboxes/sbx_loc_1/details");
  expect(address(sample({ state: "deleted" }), ALL)).toBe("/sandboxes/sbx_loc_1/details");
  expect(address(sample(), new Set())).toBe("/sandboxes/sbx_loc_1/details");
});

test("a reason is a sentence, and an age says since when it is what it is", () => {
  expect(reason(sample({ state_reason: "its time was up" }))).toBe("Its time was up.");
  expect(reason(sample())).toBe("");
  const now = Date.parse("2026-11-25T12:00:00Z");
  expect(age(sample({ state: "suspended", stopped_at: "2026-11-25T11:30:00Z" }), now)).toBe("for 30 min");
  expect(age(sample({ started_at: "2026-11-25T11:00:00Z" }), now)).toBe("up 1 h");
});
