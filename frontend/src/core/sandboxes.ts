/** What a sandbox's state means to a person. */

import type { Sandbox } from "./api";
import { span } from "./format";

export const STATE_LABEL: Record<Sandbox["state"], string> = {
  queued: "Waiting",
  starting: "Starting",
  running: "Running",
  stopping: "Stopping",
  stopped: "Stopped",
  deleted: "Deleted",
};

export function active(sandbox: Sandbox): boolean {
  return sandbox.state !== "stopped" && sandbox.state !== "deleted";
}

export function title(sandbox: Sandbox): string {
  return sandbox.name || sandbox.id;
}

/** The badge's look: an answering machine, or one that does not. */
export function tone(sandbox: Sandbox): string {
  return sandbox.state === "running" && sandbox.unresponsive ? "lost" : sandbox.state;
}

export function label(sandbox: Sandbox): string {
  return tone(sandbox) === "lost" ? "Not answering" : STATE_LABEL[sandbox.state];
}

/** What is lost when a running sandbox is stopped. */
export function stopWarning(sandbox: Sandbox): string {
  return sandbox.kind === "workspace"
    ? "Running programs and open terminals end. Files stay, and you can start it again."
    : "A sandbox is thrown away when it stops: its programs end and its files are deleted.";
}

/** How long it has run, or how long ago it stopped. */
export function age(sandbox: Sandbox, now: number): string {
  if (sandbox.state === "stopped" && sandbox.stopped_at)
    return `stopped ${span((now - Date.parse(sandbox.stopped_at)) / 1000)} ago`;
  if (sandbox.state === "running" && sandbox.started_at)
    return `up ${span((now - Date.parse(sandbox.started_at)) / 1000)}`;
  return span((now - Date.parse(sandbox.created_at)) / 1000);
}

/** The list after an event, newest first. */
export function merged(list: readonly Sandbox[], changed: Sandbox): Sandbox[] {
  const others = list.filter((sandbox) => sandbox.id !== changed.id);
  if (changed.state === "deleted") return others;
  return [...others, changed].toSorted((a, b) => Date.parse(b.created_at) - Date.parse(a.created_at));
}
