/** Secrets in words, and what a person types of one: names, hosts, places. */

export type Place = "path" | "query" | "body";

export const PLACES: readonly { id: Place; name: string; text: string }[] = [
  { id: "query", name: "Query", text: "What stands behind the ? of an address" },
  { id: "path", name: "Path", text: "What stands before it, as in webhooks" },
  { id: "body", name: "Body", text: "What is sent, as in forms and JSON" },
];

/** "Headers", "Headers, query and body". */
export function putInto(places: readonly Place[]): string {
  const names = PLACES.filter(({ id }) => places.includes(id)).map(({ name }) => name.toLowerCase());
  if (names.length === 0) return "Headers";
  return `Headers${names.length > 1 ? `, ${names.slice(0, -1).join(", ")}` : ""} and ${names.at(-1)}`;
}

/** Hosts as they are typed: one a line, or between commas. */
export function hostsOf(text: string): string[] {
  return [...new Set(text.split(/[\s,]+/).filter(Boolean))];
}

/** What is wrong with a name as far as a page can tell; nothing where it may do. */
export function nameProblem(name: string): string {
  if (name === "" || /^[A-Za-z_][A-Za-z0-9_]{0,127}$/.test(name)) return "";
  return "A name is an environment variable: letters, digits and underscores, not beginning with a digit.";
}

/** The label that a sandbox must have to get a secret; none: every sandbox does. */
export function meantFor(labels: Readonly<Record<string, string>>): string {
  const all = Object.entries(labels).map(([key, value]) => (value ? `${key}: ${value}` : key));
  return all.length ? `Those labelled ${all.join(", ")}` : "Every sandbox";
}
