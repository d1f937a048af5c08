import { expect, test } from "vitest";
import type { TimelineEntry } from "./api";
import { bars, extended } from "./timeline";

function entry(id: number, at: string, change: Partial<TimelineEntry> = {}): TimelineEntry {
  return {
    id,
    at: `2026-11-25T${at}Z`,
    state: "running",
    text: "",
    cause: null,
    actor: "",
    detail: "",
    stages: {},
    duration_seconds: null,
    ...change,
  };
}

test("a state ends when another begins, in whatever order they are told, and a happening is a moment of it", () => {
  const told = [
    entry(1, "10:00:00", { state: "starting" }),
    entry(4, "10:05:02", { state: "stopping" }),
    entry(3, "10:03:00"),
    entry(2, "10:00:02"),
  ];
  const list = told.reduce<TimelineEntry[]>(extended, []);
  expect(list.map(({ id, duration_seconds }) => [id, duration_seconds])).toEqual([
    [1, 2],
    [2, 300],
    [3, null],
    [4, null],
  ]);
});

test("what is told again replaces what was known", () => {
  const list = extended([entry(1, "10:00:00")], entry(1, "10:00:00", { text: "with stages now" }));
  expect(list.map(({ text }) => text)).toEqual(["with stages now"]);
});

test("bars share the whole, also where nothing took time", () => {
  expect(bars({ disk: 0.5, boot: 1.5 }).map(({ share }) => share)).toEqual([0.25, 0.75]);
  expect(bars({ queue: 0 })).toEqual([{ name: "queue", seconds: 0, share: 0 }]);
  expect(bars({ odd: Number.NaN })).toEqual([]);
});
