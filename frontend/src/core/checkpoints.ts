/** Checkpoints of a workspace in words. */
import type { Checkpoint, Difference, Sandbox } from "./api";
import { span } from "./format";

export const CAUSE: Record<Checkpoint["cause"], string> = {
  idle: "When it was suspended",
  stop: "When it stopped",
  hand: "By hand",
  timer: "While it was used",
  restore: "Before a restore",
  deploy: "Before a deploy",
};

export const WHAT: Record<Difference["what"], string> = {
  added: "Added",
  removed: "Removed",
  changed: "Changed",
};

/** What may be chosen, in minutes; null: as the installation does. */
export const EVERY: readonly (number | null)[] = [null, 15, 60, 240, 1440, 0];

/** How often one is taken, for people. */
export function every(minutes: number | null, usual: number): string {
  if (minutes === null) return `As usual here: ${every(usual, 0).toLowerCase()}`;
  return minutes === 0 ? "Never by time" : `Every ${span(minutes * 60)} of use`;
}

/** Whether one can be taken, or gone back to, in the state in which it is. */
export function reachable(sandbox: Pick<Sandbox, "state" | "unresponsive">): boolean {
  return (
    ["suspended", "stopped"].includes(sandbox.state) || (sandbox.state === "running" && !sandbox.unresponsive)
  );
}

/** The directories above a path, the root first, as links: "/", "/srv", "/srv/www". */
export function above(path: string): { name: string; path: string }[] {
  const parts = path.split("/").filter(Boolean);
  return [
    { name: "/", path: "" },
    ...parts.map((name, at) => ({ name, path: parts.slice(0, at + 1).join("/") })),
  ];
}
