import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { SocketEvents } from "../core/socket";
import { ACK_EVERY, INPUT_PIECE, INPUT_WINDOW } from "./protocol";
import { type Status, TerminalSession } from "./session";

class Wire {
  events!: SocketEvents;
  texts: Record<string, unknown>[] = [];
  bytes = 0;
  closed = false;
  send(data: string | Uint8Array): void {
    if (typeof data === "string") this.texts.push(JSON.parse(data));
    else this.bytes += data.length;
  }
  close(): void {
    this.closed = true;
  }
  say(message: object): void {
    this.events.text(JSON.stringify(message));
  }
}

class Rig {
  wires: Wire[] = [];
  shown = "";
  resets = 0;
  pending: (() => void)[] = [];
  statuses: Status[] = [];
  ids: string[] = [];
  session: TerminalSession;

  constructor(id: string | null) {
    this.session = new TerminalSession({
      id,
      connect: (events) => {
        const wire = new Wire();
        wire.events = events;
        this.wires.push(wire);
        return wire;
      },
      screen: {
        cols: 80,
        rows: 24,
        write: (data, drawn) => {
          this.shown += new TextDecoder().decode(data);
          this.pending.push(drawn);
        },
        reset: () => {
          this.resets++;
          this.shown = "";
        },
      },
      onId: (id) => this.ids.push(id),
      onStatus: (status) => this.statuses.push(status),
    });
    this.session.start();
  }

  get wire(): Wire {
    const wire = this.wires.at(-1);
    if (!wire) throw new Error("no connection yet");
    return wire;
  }

  draw(): void {
    while (this.pending.length) this.pending.shift()?.();
  }
}

function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

test("a new terminal is opened, named, and drawn", () => {
  const rig = new Rig(null);
  rig.wire.events.open();
  expect(rig.wire.texts[0]).toEqual({ type: "open", cols: 80, rows: 24 });
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.wire.events.bytes(bytes("$ "));
  expect(rig.ids).toEqual(["t1"]);
  expect(rig.shown).toBe("$ ");
});

test("bytes are acknowledged when drawn, every 64 KiB", () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 1000, end: 1000, truncated: false });
  rig.wire.events.bytes(new Uint8Array(ACK_EVERY - 1));
  rig.wire.events.bytes(new Uint8Array(2));
  expect(rig.wire.texts.filter((message) => message.type === "ack")).toEqual([]);
  rig.draw();
  vi.advanceTimersByTime(50);
  rig.draw();
  expect(rig.wire.texts.at(-1)).toEqual({ type: "ack", offset: 1000 + ACK_EVERY + 1 });
});

test("what arrives while the screen draws is written at once", () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  for (const piece of ["a", "b", "c"]) rig.wire.events.bytes(bytes(piece));
  expect(rig.shown).toBe("a");
  rig.pending.shift()?.();
  expect(rig.shown).toBe("abc");
  expect(rig.pending.length).toBe(1);
  for (let piece = 0; piece < 9; piece++) rig.wire.events.bytes(new Uint8Array(65_536));
  rig.pending.shift()?.();
  expect(rig.shown.length).toBe(3 + 4 * 65_536);
  rig.draw();
  vi.advanceTimersByTime(50);
  rig.draw();
  expect(rig.shown.length).toBe(3 + 9 * 65_536);
  expect(rig.wire.texts.at(-1)).toEqual({ type: "ack", offset: 3 + 9 * 65_536 });
});

test("a flood is shown now and then, and what fills a batch at once", () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.wire.events.bytes(new Uint8Array(65_536));
  rig.draw();
  rig.wire.events.bytes(bytes("more"));
  expect(rig.shown.length).toBe(65_536);
  vi.advanceTimersByTime(50);
  expect(rig.shown.length).toBe(65_536 + 4);
  rig.draw();
  rig.wire.events.bytes(new Uint8Array(65_536));
  rig.draw();
  for (let piece = 0; piece < 4; piece++) rig.wire.events.bytes(new Uint8Array(65_536));
  expect(rig.shown.length).toBe(6 * 65_536 + 4);
});

test("a dropped connection comes back to the same place without wiping the screen", async () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.wire.events.bytes(bytes("one "));
  rig.wire.events.closed(1006, "");
  expect(rig.statuses.at(-1)?.kind).toBe("waiting");
  await vi.advanceTimersByTimeAsync(300);
  rig.wire.events.open();
  expect(rig.wires.length).toBe(2);
  expect(rig.wire.texts[0]).toEqual({ type: "attach", id: "t1", cols: 80, rows: 24, offset: 4 });
  rig.wire.say({ type: "attached", id: "t1", offset: 4, end: 8, truncated: false });
  rig.wire.events.bytes(bytes("two"));
  rig.draw();
  expect(rig.shown).toBe("one two");
  expect(rig.resets).toBe(0);
});

test("output lost meanwhile wipes the screen and starts at a whole line", async () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.wire.events.bytes(bytes("old"));
  rig.wire.events.closed(1006, "");
  await vi.advanceTimersByTimeAsync(300);
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 9000, end: 9010, truncated: true });
  rig.wire.events.bytes(bytes("[31mcut\nnew"));
  expect(rig.shown).toBe("old");
  rig.draw();
  expect(rig.shown).toBe("new");
  expect(rig.resets).toBe(1);
});

test("answers to queries in replayed output are not typed", () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 3, truncated: false });
  rig.session.type(bytes("\x1b[?1;2c"));
  rig.wire.events.bytes(bytes("abc"));
  rig.session.type(bytes("\x1b[?1;2c"));
  expect(rig.wire.bytes).toBe(0);
  rig.draw();
  rig.session.type(bytes("x"));
  expect(rig.wire.bytes).toBe(1);
});

test("a huge paste waits for the terminal to take it", () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.session.type(new Uint8Array(1_000_000));
  expect(rig.wire.bytes).toBe(INPUT_WINDOW);
  rig.wire.say({ type: "input", bytes: INPUT_PIECE });
  expect(rig.wire.bytes).toBe(INPUT_WINDOW + INPUT_PIECE);
});

test("a refusal ends it, an ended process too", async () => {
  const refused = new Rig("gone");
  refused.wire.events.open();
  refused.wire.say({
    type: "error",
    code: "no_terminal",
    message: "There is no such terminal.",
    retry: false,
  });
  refused.wire.events.closed(4404, "");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(refused.statuses.at(-1)).toEqual({
    kind: "failed",
    code: "no_terminal",
    message: "There is no such terminal.",
  });
  expect(refused.wires.length).toBe(1);

  const ended = new Rig("t1");
  ended.wire.events.open();
  ended.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  ended.wire.say({ type: "exit", status: 0 });
  ended.wire.events.closed(1000, "");
  expect(ended.statuses.at(-1)).toEqual({ kind: "exited", status: 0 });
});

test("a connection that falls silent is given up and tried again", async () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  await vi.advanceTimersByTimeAsync(60_000);
  expect(rig.wires[0]?.closed).toBe(true);
});

test("a held terminal asks for nothing, keeps its screen, and goes on at its offset", async () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "attached", id: "t1", offset: 0, end: 0, truncated: false });
  rig.wire.events.bytes(bytes("hello"));
  rig.draw();
  rig.session.hold();
  expect([rig.wire.closed, rig.statuses.at(-1)]).toEqual([true, { kind: "held" }]);
  rig.wire.events.closed(1000, "");
  rig.session.retryNow();
  rig.session.type(bytes("lost"));
  await vi.advanceTimersByTimeAsync(600_000);
  expect(rig.wires.length).toBe(1);

  rig.session.release();
  rig.session.release();
  rig.wire.events.open();
  expect(rig.wire.texts).toEqual([{ type: "attach", id: "t1", cols: 80, rows: 24, offset: 5 }]);
  rig.wire.say({ type: "attached", id: "t1", offset: 5, end: 5, truncated: false });
  expect([rig.wires.length, rig.shown, rig.resets]).toEqual([2, "hello", 0]);
});

test("a machine that is away holds its terminals instead of ending them", async () => {
  const rig = new Rig("t1");
  rig.wire.events.open();
  rig.wire.say({ type: "error", code: "not_running", message: "It is suspended.", retry: false });
  rig.wire.events.closed(4404, "");
  await vi.advanceTimersByTimeAsync(60_000);
  expect([rig.wires.length, rig.statuses.at(-1)]).toEqual([1, { kind: "held" }]);
  rig.session.release();
  expect(rig.wires.length).toBe(2);
});
