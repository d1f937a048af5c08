/** A value that can be watched. Its `subscribe` is Svelte's store contract, so components read it as `$store`. */
export interface Readable<T> {
  readonly value: T;
  subscribe(watch: (value: T) => void): () => void;
}

export class Store<T> implements Readable<T> {
  #value: T;
  #watchers = new Set<(value: T) => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set(value: T): void {
    if (value === this.#value) return;
    this.#value = value;
    for (const watch of [...this.#watchers]) watch(value);
  }

  update(change: (value: T) => T): void {
    this.set(change(this.#value));
  }

  subscribe(watch: (value: T) => void): () => void {
    this.#watchers.add(watch);
    watch(this.#value);
    return () => this.#watchers.delete(watch);
  }
}
