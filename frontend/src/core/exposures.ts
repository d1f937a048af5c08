/** What of a sandbox is visited from outside, in words. */
import type { Exposure, ExposureWanted, SshAddress } from "./api";

export type AccessMode = ExposureWanted["access"];

export const ACCESS: readonly { id: AccessMode; name: string; text: string }[] = [
  { id: "organization", name: "Members", text: "whoever is signed in and a member of the organization" },
  { id: "link", name: "Whoever has a link", text: "it is shown once, and expires" },
  { id: "password", name: "Whoever knows a password", text: "any user name goes with it" },
  { id: "public", name: "Everybody", text: "who knows the address, without a question" },
];

/** The shortest password that is taken, in characters. */
export const PASSWORD = 8;
/** The hours for which a link may be good. */
export const HOURS: readonly { hours: number; name: string }[] = [
  { hours: 1, name: "an hour" },
  { hours: 24, name: "a day" },
  { hours: 7 * 24, name: "a week" },
  { hours: 31 * 24, name: "31 days" },
];

/** Whom it is for. */
export function audience(exposure: Pick<Exposure, "access" | "kind">): string {
  if (exposure.kind === "ssh") return "whoever has its user name";
  return ACCESS.find((one) => one.id === exposure.access)?.name ?? exposure.access;
}

/** Where it leads. */
export function target(exposure: Pick<Exposure, "kind" | "port" | "pid">): string {
  if (exposure.kind === "ssh") return "SSH";
  if (exposure.port !== null) return `port ${exposure.port}`;
  return exposure.pid === null ? "nowhere yet" : `process ${exposure.pid}`;
}

/** What is typed to log in with one's own keys. */
export function sshCommand(address: SshAddress): string {
  return `ssh ${address.port === 22 ? "" : `-p ${address.port} `}${address.user}@${address.host}`;
}

/** Whether the form will do. */
export function complete(wanted: ExposureWanted): boolean {
  const port = Number.isInteger(wanted.port) && wanted.port > 0 && wanted.port < 65536;
  return port && (wanted.access !== "password" || wanted.password.length >= PASSWORD);
}
