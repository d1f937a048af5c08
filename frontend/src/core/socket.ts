/** The part of a WebSocket that connections need; the page gives the browser's, tests give their own. */
export interface Socket {
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number): void;
}

export interface SocketEvents {
  open(): void;
  text(data: string): void;
  bytes(data: Uint8Array<ArrayBuffer>): void;
  /** Called exactly once, also when the connection never opened. */
  closed(code: number, reason: string): void;
}

export type Connect = (events: SocketEvents) => Socket;

/** Milliseconds to wait before the `attempt`th try (from 0): doubling to a bound, spread so that pages do not march. */
export function backoff(attempt: number, random: () => number = Math.random): number {
  const bound = Math.min(10_000, 250 * 2 ** Math.min(attempt, 10));
  return Math.round(bound / 2 + (random() * bound) / 2);
}
