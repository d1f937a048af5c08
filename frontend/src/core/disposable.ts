/** Something that holds a resource until it is told to let go. `dispose` may be called again without effect. */
export interface Disposable {
  dispose(): void;
}

/** Collects what must be undone, and undoes it in reverse order. */
export class Disposables implements Disposable {
  #undo: (() => void)[] = [];
  #disposed = false;

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Registers an undo; runs it at once if everything was disposed of already. */
  add(undo: Disposable | (() => void)): void {
    const run = typeof undo === "function" ? undo : () => undo.dispose();
    if (this.#disposed) run();
    else this.#undo.push(run);
  }

  dispose(): void {
    this.#disposed = true;
    for (let run = this.#undo.pop(); run; run = this.#undo.pop()) run();
  }
}
