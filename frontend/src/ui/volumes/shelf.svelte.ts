/** A list of volumes or snapshots: searched, loaded page by page, and loaded anew when something changes. */
import type { Api, Shelf, Volume } from "../../core/api";
import { problem } from "../notify";

const PAGE = 30;

export class ShelfList {
  items = $state.raw<readonly Volume[] | null>(null);
  deleted = $state.raw<readonly Volume[]>([]);
  failed = $state("");
  /** Whether there are more than are shown. */
  more = $state(false);
  #api: Api;
  #shelf: Shelf;
  #search = "";
  #cursor = "";
  #turn = 0;

  constructor(api: Api, shelf: Shelf) {
    this.#api = api;
    this.#shelf = shelf;
  }

  search(text: string): Promise<void> {
    this.#search = text;
    return this.refresh();
  }

  /** As many as are shown, from the newest on; what was asked before and comes later is dropped. */
  async refresh(): Promise<void> {
    const turn = ++this.#turn;
    const wanted = Math.max(PAGE, this.items?.length ?? 0);
    try {
      const [deleted, page] = await Promise.all([
        this.#api.shelf(this.#shelf, { state: "deleted", limit: 100 }),
        this.#api.shelf(this.#shelf, { search: this.#search, limit: Math.min(wanted, 100) }),
      ]);
      if (turn !== this.#turn) return;
      this.deleted = deleted.items;
      this.items = page.items;
      this.#cursor = page.next ?? "";
      this.more = page.next !== null;
      this.failed = "";
    } catch (error) {
      if (turn === this.#turn) this.failed = error instanceof Error ? error.message : String(error);
    }
  }

  async further(): Promise<void> {
    const turn = this.#turn;
    try {
      const page = await this.#api.shelf(this.#shelf, {
        search: this.#search,
        cursor: this.#cursor,
        limit: PAGE,
      });
      if (turn !== this.#turn) return;
      this.items = [...(this.items ?? []), ...page.items];
      this.#cursor = page.next ?? "";
      this.more = page.next !== null;
    } catch (error) {
      problem("The rest of the list could not be loaded", error);
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
