/** What can be done with a sandbox in each of its states, what to press first, and what each act costs. */
import type { Sandbox } from "./api";
import { moment, span } from "./format";

export type Act =
  | "open"
  | "resume"
  | "start"
  | "restore"
  | "suspend"
  | "fork"
  | "snapshot"
  | "stop"
  | "extend"
  | "rename"
  | "details"
  | "delete";

const NEEDS: Record<Act, string> = {
  open: "sandbox.use",
  resume: "sandbox.resume",
  start: "sandbox.start",
  restore: "sandbox.restore",
  suspend: "sandbox.suspend",
  fork: "sandbox.fork",
  snapshot: "volume.snapshot",
  stop: "sandbox.stop",
  extend: "sandbox.extend",
  rename: "sandbox.use",
  details: "sandbox.view",
  delete: "sandbox.delete",
};

/** In the order of menus; which of these fits the sandbox's kind is said below. */
const BY_STATE: Record<Sandbox["state"], readonly Act[]> = {
  queued: ["open", "stop", "extend", "rename", "details", "delete"],
  starting: ["open", "stop", "extend", "rename", "details", "delete"],
  running: ["open", "suspend", "fork", "snapshot", "stop", "extend", "rename", "details", "delete"],
  suspending: ["open", "stop", "extend", "rename", "details", "delete"],
  suspended: ["resume", "snapshot", "stop", "extend", "rename", "details", "delete"],
  resuming: ["open", "stop", "extend", "rename", "details", "delete"],
  stopping: ["rename", "details", "delete"],
  stopped: ["start", "snapshot", "rename", "details", "delete"],
  deleted: ["restore", "details"],
};

function fits(act: Act, sandbox: Sandbox): boolean {
  const workspace = sandbox.kind === "workspace";
  switch (act) {
    case "suspend":
      return !sandbox.unresponsive && (workspace || (sandbox.stop_at !== null && !sandbox.session));
    case "fork":
      return !sandbox.unresponsive;
    case "snapshot":
      return !sandbox.unresponsive && (workspace || sandbox.state !== "stopped");
    case "extend":
      return sandbox.stop_at !== null;
    case "start":
    case "rename":
      return workspace;
    case "restore":
      return sandbox.restorable_until !== null;
    default:
      return true;
  }
}

/** Everything that somebody with these permissions can do with it now, in the order of menus. */
export function acts(sandbox: Sandbox, may: ReadonlySet<string>): Act[] {
  return BY_STATE[sandbox.state].filter((act) => may.has(NEEDS[act]) && fits(act, sandbox));
}

/** What to press: the server's next step where it names one, else entering a machine that is there. */
export function primary(sandbox: Sandbox, may: ReadonlySet<string>): Act | null {
  const possible = acts(sandbox, may);
  const named = possible.find((act) => act === sandbox.next_step);
  return named ?? (possible[0] === "open" ? "open" : null);
}

/** Those of a menu beside the primary button. */
export function others(sandbox: Sandbox, may: ReadonlySet<string>): Act[] {
  const first = primary(sandbox, may);
  return acts(sandbox, may).filter((act) => act !== first);
}

/** What a question asks before an act by which something ends; null: it needs no question. */
export function warning(act: Act, sandbox: Sandbox): string | null {
  const workspace = sandbox.kind === "workspace";
  if (act === "stop" && workspace)
    return sandbox.state === "suspended"
      ? "Its programs and terminals, which would go on at a resume, end. Files stay, and you can start it again."
      : "Running programs and open terminals end. Files stay, and you can start it again. To keep programs too, suspend it instead.";
  if (act === "stop")
    return "A sandbox is thrown away when it stops: its programs end and its files are deleted.";
  if (act === "delete" && workspace)
    return "Running programs end. Its disk with all files is kept for a day: until then it can be restored under “Deleted” on the dashboard.";
  if (act === "delete") return "Its disk is removed with every file on it. Nobody can bring it back.";
  return null;
}

/** Until when a deleted one can be brought back, for people. */
export function restorable(sandbox: Sandbox, now: number): string {
  if (!sandbox.restorable_until) return "cannot be restored any more";
  const left = (Date.parse(sandbox.restorable_until) - now) / 1000;
  return left > 0
    ? `can be restored until ${moment(sandbox.restorable_until)} (${span(left)} left)`
    : "cannot be restored any more";
}

/** What a number of idle minutes means, for people. */
export function idleAfter(minutes: number): string {
  return minutes === 0 ? "Never" : `After ${span(minutes * 60)}`;
}

export const ORIGIN: Record<NonNullable<Sandbox["origin"]>, string> = {
  cold: "Cold boot",
  clone: "Cloned from a template",
  pool: "From the ready pool",
  resume: "Resumed from memory",
  fork: "From a running machine's memory",
};
