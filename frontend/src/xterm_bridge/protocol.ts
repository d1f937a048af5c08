/** Control messages between a page and its terminal; ide/xterm_bridge/README.md is the contract. */

export const ACK_EVERY = 65_536;
export const INPUT_WINDOW = 262_144;
export const INPUT_PIECE = 32_768;

export type ToServer =
  | { type: "open"; cols: number; rows: number; cwd?: string }
  | { type: "attach"; id: string; offset?: number; cols: number; rows: number }
  | { type: "resize"; cols: number; rows: number }
  | { type: "ack"; offset: number }
  | { type: "list" }
  | { type: "close"; id: string }
  | { type: "ping" };

export interface TerminalInfo {
  id: string;
  title: string;
  running: boolean;
  started: number;
  exit: number | null;
}

export type FromServer =
  | { type: "attached"; id: string; offset: number; end: number; truncated: boolean }
  | { type: "terminals"; terminals: TerminalInfo[] }
  | { type: "closed"; id: string }
  | { type: "input"; bytes: number }
  | { type: "exit"; status: number | null }
  | { type: "error"; code: string; message: string; retry: boolean }
  | { type: "pong" };

/** The message in a text frame, or null for what this version does not know. */
export function parse(text: string): FromServer | null {
  try {
    const message: unknown = JSON.parse(text);
    if (typeof message === "object" && message !== null && "type" in message) return message as FromServer;
  } catch {
    // Not JSON: not ours.
  }
  return null;
}

/** Decides when drawn bytes are acknowledged: every ACK_EVERY, and what is left once drawing has caught up. */
export class Drawn {
  #received: number;
  #drawn: number;
  #acknowledged: number;

  constructor(offset: number) {
    this.#received = this.#drawn = this.#acknowledged = offset;
  }

  /** Where the next connection goes on: every byte before it has been handed to the screen. */
  get received(): number {
    return this.#received;
  }

  /** How far the screen is. */
  get drawn(): number {
    return this.#drawn;
  }

  receive(count: number): void {
    this.#received += count;
  }

  /** Notes that `count` more bytes are on the screen; the offset to acknowledge, or null for not yet. */
  draw(count: number): number | null {
    this.#drawn += count;
    if (this.#drawn - this.#acknowledged < ACK_EVERY) return null;
    this.#acknowledged = this.#drawn;
    return this.#drawn;
  }
}

/** Typed bytes that wait for room: at most INPUT_WINDOW are under way and not yet taken by the terminal. */
export class Typed {
  #waiting: Uint8Array<ArrayBuffer>[] = [];
  #sent = 0;
  #taken = 0;

  /** Queues bytes; a paste of any size is kept in pieces until the terminal takes it. */
  put(data: Uint8Array<ArrayBuffer>): void {
    for (let at = 0; at < data.length; at += INPUT_PIECE)
      this.#waiting.push(data.subarray(at, at + INPUT_PIECE));
  }

  /** The next piece that may be sent now, or null. */
  next(): Uint8Array<ArrayBuffer> | null {
    const piece = this.#waiting[0];
    if (!piece || this.#sent - this.#taken + piece.length > INPUT_WINDOW) return null;
    this.#waiting.shift();
    this.#sent += piece.length;
    return piece;
  }

  /** The server's total of bytes taken on this connection. */
  take(total: number): void {
    this.#taken = Math.min(this.#sent, Math.max(this.#taken, total));
  }

  /** A new connection counts from zero; what waited was typed at a screen that is gone from under it, so it is dropped. */
  reset(): void {
    this.#waiting = [];
    this.#sent = this.#taken = 0;
  }
}
