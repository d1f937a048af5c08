/** What a page lists: loaded, loaded anew after every act, and what failed said where the person looks. */
import { problem } from "./notify";

export class Listing<T> {
  items = $state.raw<T[] | null>(null);
  /** Why there is nothing to show. */
  failed = $state("");
  #load: () => Promise<T[]>;

  constructor(load: () => Promise<T[]>) {
    this.#load = load;
  }

  async refresh(): Promise<void> {
    try {
      this.items = await this.#load();
      this.failed = "";
    } catch (error) {
      this.failed = error instanceof Error ? error.message : String(error);
    }
  }

  /** Runs it and loads anew; a failure is told with `what` was not done. */
  async act(what: string, run: () => Promise<unknown>): Promise<void> {
    try {
      await run();
    } catch (error) {
      problem(what, error);
    }
    await this.refresh();
  }
}
