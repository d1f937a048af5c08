/** What happens in the organization, pushed; whoever was away asks again, so nothing is missed. */
import { backoff, type Connect, type Socket } from "./socket";
import { Store } from "./store";

export interface Event {
  kind: string;
  payload: unknown;
}

const PING_EVERY = 20_000;
const SILENCE = 50_000;

export class Events {
  readonly live = new Store(false);
  /** The server will not have this page: its person is signed out, or no member any more. Only a reload helps. */
  readonly refused = new Store(false);
  #connect: Connect;
  #watchers = new Set<(event: Event) => void>();
  #fresh = new Set<() => void>();
  #socket: Socket | null = null;
  #attempt = 0;
  #retry: number | undefined;
  #ping: number | undefined;
  #heard = 0;
  #epoch = 0;

  constructor(connect: Connect) {
    this.#connect = connect;
  }

  start(): void {
    const epoch = ++this.#epoch;
    this.#socket = this.#connect({
      open: () => {
        this.#heard = Date.now();
        this.#ping = setInterval(() => {
          if (Date.now() - this.#heard > SILENCE) this.#lost(epoch);
          else this.#socket?.send("ping");
        }, PING_EVERY);
      },
      text: (data) => {
        this.#heard = Date.now();
        if (epoch !== this.#epoch || data === "pong") return;
        const event = JSON.parse(data) as Event;
        if (event.kind === "ready") {
          // The subscription stands from here on: what is asked for now cannot miss anything.
          this.#attempt = 0;
          this.live.set(true);
          for (const fresh of this.#fresh) fresh();
        } else for (const watch of this.#watchers) watch(event);
      },
      bytes: () => {},
      closed: (code) => {
        if (epoch === this.#epoch && (code === 4401 || code === 4403)) this.refused.set(true);
        this.#lost(epoch);
      },
    });
  }

  /** `fresh` runs at every (re)connection: ask for everything then. Returns the way to stop. */
  watch(fresh: () => void, event: (event: Event) => void): () => void {
    this.#watchers.add(event);
    this.#fresh.add(fresh);
    if (this.live.value) fresh();
    return () => {
      this.#watchers.delete(event);
      this.#fresh.delete(fresh);
    };
  }

  #lost(epoch: number): void {
    if (epoch !== this.#epoch) return;
    this.#epoch++;
    clearInterval(this.#ping);
    this.#socket?.close();
    this.#socket = null;
    this.live.set(false);
    if (this.refused.value) return;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.start(), backoff(this.#attempt++));
  }
}
