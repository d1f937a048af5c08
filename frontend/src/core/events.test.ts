import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Events } from "./events";
import type { SocketEvents } from "./socket";

let lines: SocketEvents[];
let events: Events;

beforeEach(() => {
  vi.useFakeTimers();
  lines = [];
  events = new Events((line) => {
    lines.push(line);
    return { send: () => {}, close: () => {} };
  });
});
afterEach(() => {
  vi.useRealTimers();
});

test("everything is asked for again whenever a subscription begins", async () => {
  let asked = 0;
  const heard: string[] = [];
  events.watch(
    () => asked++,
    (event) => heard.push(event.kind),
  );
  events.start();
  lines[0]?.open();
  expect(asked).toBe(0);
  lines[0]?.text('{"kind":"ready","payload":{}}');
  lines[0]?.text('{"kind":"sandbox","payload":{}}');
  expect([asked, heard, events.live.value]).toEqual([1, ["sandbox"], true]);
  lines[0]?.closed(1006, "");
  expect(events.live.value).toBe(false);
  await vi.advanceTimersByTimeAsync(300);
  lines[1]?.open();
  lines[1]?.text('{"kind":"ready","payload":{}}');
  expect(asked).toBe(2);
});

test("a refused page does not ask again", async () => {
  events.start();
  lines[0]?.closed(4401, "");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(lines.length).toBe(1);
  expect(events.refused.value).toBe(true);
});
