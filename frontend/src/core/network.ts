/** What a sandbox may reach and reached, as people read and write it. */
import type { components } from "../gen/api";

type Schemas = components["schemas"];
export type Network = Schemas["NetworkOut"];
export type Denial = Schemas["DenialOut"];
export type Connection = Schemas["ConnectionOut"];
export type Summary = Schemas["NetworkSummary"];
export type HostList = Schemas["HostListOut"];
export type Verdict = Connection["verdict"];
export type Period = "hour" | "day" | "week";

export const VERDICT_LABEL: Record<Verdict, string> = {
  allowed: "Allowed",
  denied: "Denied",
  failed: "Failed",
  cut: "Cut off",
};

/** One policy as it is edited: texts with a pattern in each line. */
export interface Draft {
  listed: boolean;
  /** Whether somebody is asked about a host that is on neither list. */
  ask: boolean;
  allow: string;
  deny: string;
}

export function draftOf(network: Pick<Network, "allow_net" | "deny_net" | "ask_net">): Draft {
  return {
    listed: network.allow_net !== null,
    ask: network.ask_net,
    allow: (network.allow_net ?? []).join("\n"),
    deny: network.deny_net.join("\n"),
  };
}

/** The patterns of a text, one a line; empty lines are none. */
export function patterns(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}

/** For each pattern of a text the line it stands in, from 1. */
export function lineNumbers(text: string): number[] {
  return text.split("\n").flatMap((line, index) => (line.trim() ? [index + 1] : []));
}

/** A text with more patterns below it; those that are there already are not repeated. */
export function added(text: string, more: readonly string[]): string {
  const known = patterns(text);
  return [...known, ...more.filter((pattern) => !known.includes(pattern))].join("\n");
}

export function policyOf(draft: Draft): Pick<Network, "allow_net" | "deny_net" | "ask_net"> {
  return {
    allow_net: draft.listed ? patterns(draft.allow) : null,
    deny_net: patterns(draft.deny),
    ask_net: draft.listed && draft.ask,
  };
}

/** Whether a connection waits for somebody's answer now. */
export function waits(denial: Denial, now: number): boolean {
  return denial.waits_until !== null && Date.parse(denial.waits_until) > now;
}

/** Whether two drafts mean the same. */
export function same(one: Draft, other: Draft): boolean {
  return JSON.stringify(policyOf(one)) === JSON.stringify(policyOf(other));
}

/** What a person can do about a denial, as a sentence; empty where its reason or a button says it, or he can do nothing. */
export function advice(denial: Denial, may: ReadonlySet<string>): string {
  switch (denial.remedy) {
    case "allow":
      return may.has("sandbox.network") ? "" : "Somebody who may change this sandbox can allow it.";
    case "rule":
      return `Remove ${denial.rule} from what this sandbox is denied to let it through.`;
    case "organization_rule":
      return `Your organization denies ${denial.rule} to all its sandboxes; an administrator of it can change that.`;
    case "done":
      return "It is allowed by now: try again.";
    default:
      return "";
  }
}

export function place(of: { host: string; port: number }): string {
  const host = of.host.includes(":") ? `[${of.host}]` : of.host;
  return `${host}:${of.port}`;
}

/** What happened, in a few words. */
export function headline(denial: Denial, now: number): string {
  if (!denial.host) return "Many hosts were denied";
  if (denial.kind === "alert") return `A placeholder of a secret was sent to ${place(denial)}`;
  return waits(denial, now) ? `${place(denial)}: allow it?` : `${place(denial)} was denied`;
}

/** A reason as a sentence; it may begin with a host, which keeps its spelling. */
export function why(detail: string): string {
  return detail && (/[.!?…]$/.test(detail) ? detail : `${detail}.`);
}

/** The newest `limit` of both, newest first, each once. */
export function merged(
  list: readonly Connection[],
  more: readonly Connection[],
  limit: number,
): Connection[] {
  const all = new Map([...list, ...more].map((one) => [one.number, one]));
  return [...all.values()].toSorted((a, b) => b.number - a.number).slice(0, limit);
}

/** The unit in which the largest of these amounts of bytes is read best, and what one of it is. */
export function unitOf(values: readonly number[]): { unit: string; size: number } {
  const most = Math.max(0, ...values);
  if (most >= 1e9) return { unit: "GB", size: 1e9 };
  if (most >= 1e6) return { unit: "MB", size: 1e6 };
  return most >= 1e3 ? { unit: "kB", size: 1e3 } : { unit: "bytes", size: 1 };
}

/** A period's name on an axis: the hour of its day, or its day where a week is shown. */
export function periodName(at: string, period: Period): string {
  const time = new Date(at);
  const clock = time.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  if (period !== "week") return clock;
  return `${time.toLocaleDateString(undefined, { weekday: "short" })} ${clock}`;
}
