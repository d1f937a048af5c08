import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { encodeBase64 } from "./base64";
import { Commands, keyName, search } from "./commands";
import { span } from "./format";
import { moved, nameProblem, parent } from "./paths";
import { Rpc } from "./rpc";
import type { SocketEvents } from "./socket";

let lines: { events: SocketEvents; sent: Record<string, unknown>[] }[];
let rpc: Rpc;

beforeEach(() => {
  vi.useFakeTimers();
  lines = [];
  rpc = new Rpc((events) => {
    const sent: Record<string, unknown>[] = [];
    lines.push({ events, sent });
    return {
      send: (data) => sent.push(data === "ping" ? { ping: true } : JSON.parse(String(data))),
      close: () => {},
    };
  });
  rpc.start();
});
afterEach(() => {
  vi.useRealTimers();
});

const line = () => {
  const last = lines.at(-1);
  if (!last) throw new Error("no connection");
  return last;
};

test("a call made before the connection stands is sent once it does, and answered", async () => {
  const answer = rpc.call<number>("stat", { path: "/" });
  line().events.open();
  await vi.advanceTimersByTimeAsync(0);
  expect(line().sent).toEqual([{ jsonrpc: "2.0", id: 1, method: "stat", params: { path: "/" } }]);
  line().events.text('{"jsonrpc":"2.0","id":1,"result":{"ok":7}}');
  expect(await answer).toBe(7);
});

test("an operation's failure carries its code", async () => {
  line().events.open();
  const answer = rpc.call("stat", {});
  const failed = expect(answer).rejects.toMatchObject({ code: "ENOENT", message: "no such file" });
  await vi.advanceTimersByTimeAsync(0);
  line().events.text(
    '{"id":1,"result":{"error":{"constructorName":"NotFound","message":"no such file","code":"ENOENT"}}}',
  );
  await failed;
});

test("a dropped connection fails what was under way and comes back", async () => {
  line().events.open();
  const failed = expect(rpc.call("stat", {})).rejects.toMatchObject({ code: "NOT_CONNECTED" });
  await vi.advanceTimersByTimeAsync(0);
  line().events.closed(1006, "");
  await failed;
  expect(rpc.link.value).toBe("waiting");
  await vi.advanceTimersByTimeAsync(300);
  line().events.open();
  expect(lines.length).toBe(2);
  expect(rpc.link.value).toBe("open");
});

test("a stream that speaks before its call is answered loses nothing", async () => {
  line().events.open();
  const chunks: string[] = [];
  const started = rpc.stream(
    "watch",
    {},
    { chunk: (data) => chunks.push(new TextDecoder().decode(data)), end: () => chunks.push("end") },
  );
  await vi.advanceTimersByTimeAsync(0);
  const data = (text: string) =>
    JSON.stringify({
      method: "$sandbox.stream.enqueue",
      params: { streamId: 0, data: encodeBase64(new TextEncoder().encode(text)) },
    });
  line().events.text(data("early"));
  line().events.text('{"id":1,"result":{"ok":{"streamId":0}}}');
  const stop = await started;
  line().events.text(data("late"));
  expect(chunks).toEqual(["early", "late"]);
  stop();
  expect(line().sent.at(-1)).toMatchObject({ method: "$sandbox.stream.cancel" });
});

test("keys find their command, fewer of them in a terminal", () => {
  const commands = new Commands();
  const ran = { id: "a", title: "Save file", group: "File", keys: "Ctrl+S", run: () => {} };
  const palette = {
    id: "b",
    title: "Show all commands",
    group: "Go",
    keys: "F1 or Ctrl+K",
    inTerminal: "F1",
    run: () => {},
  };
  commands.add(ran, palette);
  const key = (name: string, ctrlKey = false) => ({
    key: name,
    ctrlKey,
    shiftKey: false,
    altKey: false,
    metaKey: false,
  });
  expect(keyName(key("s", true))).toBe("Ctrl+S");
  expect(commands.find(key("s", true), false)).toBe(ran);
  expect(commands.find(key("s", true), true)).toBeUndefined();
  expect(commands.find(key("k", true), false)).toBe(palette);
  expect(commands.find(key("k", true), true)).toBeUndefined();
  expect(commands.find(key("F1"), true)).toBe(palette);
  expect(search(commands.all.value, "all com")).toEqual([palette]);
});

test("paths and spans read as people write them", () => {
  expect(parent("/a")).toBe("/");
  expect(moved("/a/b/c", "/a/b", "/x")).toBe("/x/c");
  expect(moved("/a/bc", "/a/b", "/x")).toBe("/a/bc");
  expect(nameProblem("a/b")).not.toBeNull();
  expect(nameProblem("ok.txt")).toBeNull();
  expect(span(59)).toBe("59 s");
  expect(span(3720)).toBe("1 h 2 min");
});
