/** What was dropped on the page: every file below every folder, as sources for an upload. */
import type { Source } from "../../core/uploads";

export interface Dropped {
  sources: Source[];
  folders: string[];
}

export function fromFiles(files: Iterable<File>): Source[] {
  return [...files].map((file) => source(file.webkitRelativePath || file.name, file));
}

function source(path: string, file: File): Source {
  return {
    path,
    size: file.size,
    slice: async (start, end) => new Uint8Array(await file.slice(start, end).arrayBuffer()),
  };
}

/** Must be called while the drop event is handled: its items are gone afterwards. */
export function fromDrop(transfer: DataTransfer): Promise<Dropped> {
  const entries: FileSystemEntry[] = [];
  for (const item of transfer.items) {
    const entry = item.kind === "file" ? item.webkitGetAsEntry() : null;
    if (entry) entries.push(entry);
  }
  const loose = entries.length === 0 ? fromFiles(transfer.files) : [];
  return collect(entries, loose);
}

async function collect(entries: FileSystemEntry[], loose: Source[]): Promise<Dropped> {
  const sources = loose;
  const folders: string[] = [];
  const visit = async (entry: FileSystemEntry, path: string): Promise<void> => {
    if (entry.isFile) {
      const file = await new Promise<File>((resolve, reject) =>
        (entry as FileSystemFileEntry).file(resolve, reject),
      );
      sources.push(source(path, file));
      return;
    }
    folders.push(path);
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      // A reader hands out its entries in portions, and an empty one means the end.
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
        reader.readEntries(resolve, reject),
      );
      if (some.length === 0) return;
      for (const child of some) await visit(child, `${path}/${child.name}`);
    }
  };
  for (const entry of entries) await visit(entry, entry.name);
  return { sources, folders };
}
