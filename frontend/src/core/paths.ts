/** Absolute POSIX paths of the guest, as text. */
export function join(directory: string, name: string): string {
  return directory.endsWith("/") ? directory + name : `${directory}/${name}`;
}

export function parent(path: string): string {
  const at = path.lastIndexOf("/");
  return at <= 0 ? "/" : path.slice(0, at);
}

export function base(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1) || "/";
}

/** Whether `path` is `directory` or lies below it. */
export function within(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory === "/" ? "/" : `${directory}/`);
}

/** Where `path` ends up when `from` is renamed to `to`. */
export function moved(path: string, from: string, to: string): string {
  return within(path, from) ? to + path.slice(from.length) : path;
}

/** What is wrong with a file's name, or null. */
export function nameProblem(name: string): string | null {
  if (!name) return "A name is needed.";
  if (name === "." || name === "..") return "This name means a directory.";
  if (name.includes("/") || name.includes("\0")) return "A name cannot contain a slash.";
  if (new TextEncoder().encode(name).length > 255) return "A name has at most 255 bytes.";
  return null;
}
