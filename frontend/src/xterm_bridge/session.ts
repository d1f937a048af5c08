/** One terminal over a connection that may drop: reconnects, resumes by offset, acknowledges what was drawn. */
import { backoff, type Connect, type Socket } from "../core/socket";
import { Drawn, type FromServer, parse, type ToServer, Typed } from "./protocol";

export type Status =
  | { kind: "connecting"; attempt: number }
  | { kind: "attached" }
  | { kind: "waiting"; retryAt: number; why: string }
  /** There is no machine to connect to now; `release` says that there is one again. */
  | { kind: "held" }
  | { kind: "exited"; status: number | null }
  | { kind: "failed"; code: string; message: string };

export interface Screen {
  readonly cols: number;
  readonly rows: number;
  /** Draws bytes and calls back once they are on the screen. */
  write(data: Uint8Array<ArrayBuffer>, drawn: () => void): void;
  /** The output begins anew: wipe everything, scrollback included. */
  reset(): void;
}

export interface SessionOptions {
  connect: Connect;
  screen: Screen;
  /** Null starts a new terminal. */
  id: string | null;
  cwd?: string;
  onId(id: string): void;
  onStatus(status: Status): void;
  now?(): number;
}

/** Written to the screen at once: what arrives while it draws waits, so that a torrent costs few calls and frames. */
const BATCH = 262_144;
/** A piece that long is a flood, which nobody reads: the screen is then shown at most every CALM milliseconds. */
const FLOOD = 32_768;
const CALM = 40;
/** Errors by which the machine, not the terminal, is away: the screen stays and waits for its return. */
const AWAY = ["not_running", "suspended"];
const PING_EVERY = 15_000;
const SILENCE = 40_000;

export class TerminalSession {
  #options: SessionOptions;
  #id: string | null;
  #drawn: Drawn | null = null;
  #typed = new Typed();
  #socket: Socket | null = null;
  #attached = false;
  #attempt = 0;
  #retry: number | undefined;
  #ping: number | undefined;
  #heard = 0;
  #disposed = false;
  #epoch = 0;
  #lastError: { code: string; message: string; retry: boolean } | null = null;
  #ended = false;
  #held = false;
  /** Up to here the screen is being rebuilt from kept output: what xterm answers to old queries must not be typed. */
  #replayUntil = 0;
  #skipToLine = false;
  #waiting: Uint8Array<ArrayBuffer>[] = [];
  #drawing = false;
  #calm: ReturnType<typeof setTimeout> | undefined;
  /** The screen has to be reset, which must not happen while it draws what came before. */
  #wipe = false;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#id = options.id;
  }

  get id(): string | null {
    return this.#id;
  }

  start(): void {
    this.#connect();
  }

  /** Types bytes into the terminal; dropped while there is no connection, as keys pressed at a dead screen are. */
  type(data: Uint8Array<ArrayBuffer>): void {
    if (!this.#attached || (this.#drawn?.drawn ?? 0) < this.#replayUntil) return;
    this.#typed.put(data);
    this.#flush();
  }

  resize(): void {
    const { cols, rows } = this.#options.screen;
    if (this.#attached) this.#send({ type: "resize", cols, rows });
  }

  /** Tries again now instead of when the wait is over. */
  retryNow(): void {
    if (this.#ended || this.#held || this.#socket) return;
    clearTimeout(this.#retry);
    this.#attempt = 0;
    this.#connect();
  }

  /** The machine stands still: keeps the screen, and asks for nothing until `release`. Repeatable. */
  hold(): void {
    if (this.#ended || this.#held) return;
    this.#held = true;
    this.#epoch++;
    this.#attached = false;
    clearTimeout(this.#retry);
    clearInterval(this.#ping);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#options.onStatus({ kind: "held" });
  }

  /** Attaches again where it was held, at the offset its screen has reached. Repeatable. */
  release(): void {
    if (!this.#held || this.#ended) return;
    this.#held = false;
    this.#attempt = 0;
    this.#connect();
  }

  /** Leaves the terminal running. */
  dispose(): void {
    this.#disposed = true;
    this.#ended = true;
    clearTimeout(this.#calm);
    clearTimeout(this.#retry);
    clearInterval(this.#ping);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  #now(): number {
    return this.#options.now ? this.#options.now() : Date.now();
  }

  #send(message: ToServer): void {
    this.#socket?.send(JSON.stringify(message));
  }

  #flush(): void {
    for (let piece = this.#typed.next(); piece; piece = this.#typed.next()) this.#socket?.send(piece);
  }

  #connect(): void {
    if (this.#disposed) return;
    this.#options.onStatus({ kind: "connecting", attempt: this.#attempt });
    this.#lastError = null;
    const epoch = ++this.#epoch;
    this.#socket = this.#options.connect({
      open: () => {
        if (epoch === this.#epoch) this.#hello();
      },
      text: (data) => {
        if (epoch !== this.#epoch) return;
        this.#heard = this.#now();
        const message = parse(data);
        if (message) this.#receive(message);
      },
      bytes: (data) => {
        if (epoch !== this.#epoch) return;
        this.#heard = this.#now();
        this.#output(data);
      },
      closed: (code) => {
        if (epoch === this.#epoch) this.#closed(code);
      },
    });
  }

  #hello(): void {
    const { cols, rows } = this.#options.screen;
    const { cwd } = this.#options;
    if (this.#id === null) this.#send({ type: "open", cols, rows, ...(cwd === undefined ? {} : { cwd }) });
    else {
      const offset = this.#drawn?.received;
      this.#send({ type: "attach", id: this.#id, cols, rows, ...(offset === undefined ? {} : { offset }) });
    }
    this.#heard = this.#now();
    clearInterval(this.#ping);
    this.#ping = setInterval(() => {
      // A machine that is still starting answers nothing; only an attached terminal has to be heard from.
      if (!this.#attached) return;
      if (this.#now() - this.#heard > SILENCE) this.#socket?.close(4000);
      else this.#send({ type: "ping" });
    }, PING_EVERY);
  }

  #receive(message: FromServer): void {
    if (message.type === "attached") {
      this.#attempt = 0;
      this.#attached = true;
      if (this.#id !== message.id) {
        this.#id = message.id;
        this.#options.onId(message.id);
      }
      if (this.#drawn?.received !== message.offset) {
        this.#waiting = [];
        this.#wipe = this.#drawn !== null;
        this.#drawn = new Drawn(message.offset);
        this.#replayUntil = message.end;
        this.#skipToLine = message.truncated && message.offset > 0;
        this.#draw();
      }
      this.#typed.reset();
      this.#options.onStatus({ kind: "attached" });
      if (message.truncated) {
        // A full-screen program's picture began before what is kept: another size makes it draw all of it again.
        const { cols, rows } = this.#options.screen;
        this.#send({ type: "resize", cols, rows: Math.max(1, rows - 1) });
        setTimeout(() => this.resize(), 100);
      } else this.resize();
    } else if (message.type === "input") {
      this.#typed.take(message.bytes);
      this.#flush();
    } else if (message.type === "exit") {
      this.#ended = true;
      this.#options.onStatus({ kind: "exited", status: message.status });
    } else if (message.type === "error") {
      this.#lastError = message;
    }
  }

  #output(data: Uint8Array<ArrayBuffer>): void {
    const drawn = this.#drawn;
    if (!drawn) return;
    drawn.receive(data.length);
    if (this.#skipToLine) {
      // Kept output may begin inside a character or an escape sequence; a line's start is a safe place.
      const line = data.indexOf(10);
      this.#skipToLine = false;
      drawn.draw(line + 1);
      if (line + 1 < data.length) this.#waiting.push(data.subarray(line + 1));
    } else this.#waiting.push(data);
    this.#draw();
  }

  #draw(): void {
    const drawn = this.#drawn;
    if (this.#drawing || !drawn) return;
    if (this.#wipe) this.#options.screen.reset();
    this.#wipe = false;
    if (this.#calm !== undefined && size(this.#waiting) < BATCH) return;
    clearTimeout(this.#calm);
    this.#calm = undefined;
    const batch = joined(this.#waiting, BATCH);
    if (!batch.length) return;
    this.#drawing = true;
    this.#options.screen.write(batch, () => {
      this.#drawing = false;
      const offset = drawn.draw(batch.length);
      if (offset !== null && this.#attached && drawn === this.#drawn) this.#send({ type: "ack", offset });
      if (batch.length >= FLOOD)
        this.#calm = setTimeout(() => {
          this.#calm = undefined;
          this.#draw();
        }, CALM);
      this.#draw();
    });
  }

  #closed(code: number): void {
    this.#socket = null;
    this.#attached = false;
    clearInterval(this.#ping);
    if (this.#ended) return;
    const error = this.#lastError;
    if (error && AWAY.includes(error.code)) {
      this.hold();
      return;
    }
    if ((error && !error.retry) || code === 1008 || code === 4401 || code === 4403 || code === 4404) {
      this.#ended = true;
      this.#options.onStatus({
        kind: "failed",
        code: error?.code ?? String(code),
        message:
          error?.message ?? (code === 4401 ? "You are signed out." : "The server refused this terminal."),
      });
      return;
    }
    const wait = backoff(this.#attempt++);
    this.#options.onStatus({
      kind: "waiting",
      retryAt: this.#now() + wait,
      why: error?.message ?? "The connection dropped.",
    });
    this.#retry = setTimeout(() => this.#connect(), wait);
  }
}

function size(pieces: Uint8Array<ArrayBuffer>[]): number {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

/** Takes pieces off the front of `pieces`, at least one and about `limit` bytes, as one. */
function joined(pieces: Uint8Array<ArrayBuffer>[], limit: number): Uint8Array<ArrayBuffer> {
  let count = 0;
  let length = 0;
  for (const piece of pieces) {
    if (count && length + piece.length > limit) break;
    count++;
    length += piece.length;
  }
  const taken = pieces.splice(0, count);
  if (taken.length === 1 && taken[0]) return taken[0];
  const whole = new Uint8Array(length);
  let at = 0;
  for (const piece of taken) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
