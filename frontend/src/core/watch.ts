/** Keeps tree and documents true to what happens to the files underneath them. */
import type { Documents } from "./documents";
import { parent } from "./paths";
import type { Rpc } from "./rpc";
import type { Tree } from "./tree";

/** Directories that are watched at once. */
const MOST = 250;

export class Watch {
  #rpc: Rpc;
  #tree: Tree;
  #documents: Documents;
  #watching = "";
  #stop: (() => void) | null = null;
  #again: ReturnType<typeof setTimeout> | undefined;
  #refreshing: ReturnType<typeof setTimeout> | undefined;
  #stale = new Set<string>();

  constructor(rpc: Rpc, tree: Tree, documents: Documents) {
    this.#rpc = rpc;
    this.#tree = tree;
    this.#documents = documents;
  }

  /** The connection is a new one, and nothing is watched on it yet. */
  begin(): void {
    this.#watching = "";
  }

  /** What is shown has changed: watch that, a moment later. */
  soon(): void {
    clearTimeout(this.#again);
    this.#again = setTimeout(() => void this.#watch(), 150);
  }

  async #watch(): Promise<void> {
    const paths = [
      ...new Set([
        ...this.#tree.watched,
        ...this.#documents.state.value.open.map(({ path }) => parent(path)),
      ]),
    ].slice(0, MOST);
    const wanted = paths.toSorted().join("\n");
    if (this.#rpc.link.value !== "open" || wanted === this.#watching) return;
    const known = new Set(this.#watching.split("\n"));
    this.#watching = wanted;
    const before = this.#stop;
    try {
      const decoder = new TextDecoder();
      this.#stop = await this.#rpc.stream(
        "watch",
        { paths },
        {
          chunk: (data) => {
            try {
              this.#changed((JSON.parse(decoder.decode(data)) as { path: string }).path);
            } catch {
              // One broken line of a guest is no reason to stop watching.
            }
          },
          end: () => {},
        },
      );
    } catch {
      // Without it the page still looks again at every save and reconnection.
      this.#watching = "";
    }
    before?.();
    // What changed between the last look and the first moment of watching would never be told.
    const fresh = this.#tree.watched.filter((path) => !known.has(path));
    await Promise.allSettled([...fresh.map((path) => this.#tree.load(path)), this.#documents.checkAll()]);
  }

  #changed(path: string): void {
    this.#stale.add(path);
    this.#refreshing ??= setTimeout(() => {
      this.#refreshing = undefined;
      const paths = [...this.#stale];
      this.#stale.clear();
      const watched = new Set(this.#tree.watched);
      const directories = new Set(
        paths.flatMap((changed) => [changed, parent(changed)]).filter((at) => watched.has(at)),
      );
      for (const directory of directories) void this.#tree.load(directory);
      void this.#documents.checkAll();
    }, 200);
  }
}
