/** JSON-RPC to one sandbox over a connection that may drop: answers calls, delivers streams, reconnects by itself. */
import { decodeBase64 } from "./base64";
import { backoff, type Connect, type Socket } from "./socket";
import { Store } from "./store";

export type Link = "connecting" | "open" | "waiting" | "closed";

/** The operation failed inside the machine, or the connection did. `code` is an errno name where there is one. */
export class CallError extends Error {
  readonly code: string;
  constructor(message: string, code: string) {
    super(message);
    this.code = code;
  }
}

export interface Calls {
  call<T>(method: string, params: object): Promise<T>;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: CallError): void;
}

export interface StreamWatcher {
  chunk(data: Uint8Array<ArrayBuffer>): void;
  end(): void;
}

interface Message {
  id?: number;
  method?: string;
  params?: { streamId?: number; data?: string };
  result?: { ok?: unknown; error?: { message?: string; code?: string | null; constructorName?: string } };
  error?: { code: number; message: string };
}

const PING_EVERY = 10_000;
const SILENCE = 35_000;
const WAIT_FOR_LINK = 20_000;

export class Rpc implements Calls {
  readonly link = new Store<Link>("closed");
  #connect: Connect;
  #socket: Socket | null = null;
  #next = 1;
  #pending = new Map<number, Pending>();
  #streams = new Map<number, StreamWatcher>();
  // A stream may speak before the call that names it was answered.
  #early = new Map<number, Message[]>();
  #waiters: (() => void)[] = [];
  #attempt = 0;
  #retry: number | undefined;
  #ping: number | undefined;
  #heard = 0;
  #epoch = 0;
  #wanted = false;

  constructor(connect: Connect) {
    this.#connect = connect;
  }

  start(): void {
    if (this.#wanted) return;
    this.#wanted = true;
    this.#attempt = 0;
    this.#dial();
  }

  /** Closes and stays closed until `start`; calls under way fail. */
  stop(): void {
    this.#wanted = false;
    clearTimeout(this.#retry);
    this.#drop("The connection was closed.");
    this.link.set("closed");
  }

  retryNow(): void {
    if (!this.#wanted || this.#socket) return;
    clearTimeout(this.#retry);
    this.#attempt = 0;
    this.#dial();
  }

  /** Waits for the connection if there is none now. Rejects with CallError. */
  async call<T>(method: string, params: object): Promise<T> {
    if (this.link.value !== "open") await this.#opened();
    return new Promise<T>((resolve, reject) => {
      const id = this.#next++;
      this.#pending.set(id, { resolve: (value) => resolve(value as T), reject });
      this.#socket?.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    });
  }

  /** Calls a method whose answer names a stream; returns the way to stop it. */
  async stream(method: string, params: object, watcher: StreamWatcher): Promise<() => void> {
    const { streamId } = await this.call<{ streamId: number }>(method, params);
    this.#streams.set(streamId, watcher);
    for (const message of this.#early.get(streamId) ?? []) this.#streamed(message);
    this.#early.delete(streamId);
    const epoch = this.#epoch;
    return () => {
      if (!this.#streams.delete(streamId) || epoch !== this.#epoch) return;
      this.#notify("$sandbox.stream.cancel", { streamId, reason: null });
    };
  }

  #notify(method: string, params: object): void {
    this.#socket?.send(JSON.stringify({ jsonrpc: "2.0", method, params }));
  }

  #opened(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters = this.#waiters.filter((waiter) => waiter !== opened);
        reject(new CallError("There is no connection to the machine.", "NOT_CONNECTED"));
      }, WAIT_FOR_LINK);
      const opened = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#waiters.push(opened);
    });
  }

  #dial(): void {
    const epoch = ++this.#epoch;
    this.link.set("connecting");
    this.#socket = this.#connect({
      open: () => {
        if (epoch !== this.#epoch) return;
        this.#attempt = 0;
        this.#heard = Date.now();
        this.#ping = setInterval(() => {
          if (Date.now() - this.#heard > SILENCE) this.#lost(epoch);
          else this.#socket?.send("ping");
        }, PING_EVERY);
        this.link.set("open");
        for (const waiter of this.#waiters.splice(0)) waiter();
      },
      text: (data) => {
        if (epoch !== this.#epoch) return;
        this.#heard = Date.now();
        if (data !== "pong") this.#receive(data);
      },
      bytes: () => {},
      closed: () => this.#lost(epoch),
    });
  }

  #lost(epoch: number): void {
    if (epoch !== this.#epoch) return;
    this.#drop("The connection to the machine dropped.");
    if (!this.#wanted) return;
    this.link.set("waiting");
    this.#retry = setTimeout(() => this.#dial(), backoff(this.#attempt++));
  }

  #drop(why: string): void {
    this.#epoch++;
    clearInterval(this.#ping);
    this.#socket?.close(1000);
    this.#socket = null;
    const pending = [...this.#pending.values()];
    const streams = [...this.#streams.values()];
    this.#pending.clear();
    this.#streams.clear();
    this.#early.clear();
    for (const call of pending) call.reject(new CallError(why, "NOT_CONNECTED"));
    for (const stream of streams) stream.end();
  }

  #receive(data: string): void {
    let message: Message;
    try {
      message = JSON.parse(data) as Message;
    } catch {
      return;
    }
    if (message.method) {
      this.#streamed(message);
      return;
    }
    const call = this.#pending.get(message.id ?? -1);
    if (!call) return;
    this.#pending.delete(message.id ?? -1);
    const failed = message.result?.error;
    if (message.error) call.reject(new CallError(message.error.message, String(message.error.code)));
    else if (failed)
      call.reject(new CallError(failed.message ?? "It failed.", failed.code ?? failed.constructorName ?? ""));
    else call.resolve(message.result?.ok ?? null);
  }

  #streamed(message: Message): void {
    const id = message.params?.streamId;
    if (id === undefined) return;
    const watcher = this.#streams.get(id);
    if (!watcher) {
      const early = this.#early.get(id) ?? [];
      if (this.#early.size < 64 && early.length < 256) this.#early.set(id, [...early, message]);
      return;
    }
    if (message.method === "$sandbox.stream.enqueue") watcher.chunk(decodeBase64(message.params?.data ?? ""));
    else if (message.method === "$sandbox.stream.end") {
      this.#streams.delete(id);
      watcher.end();
    }
  }
}
