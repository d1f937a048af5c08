/** Tells a person of what failed: what, why, and what to do. */
import { toast } from "svelte-sonner";
import { ApiError } from "../core/api";
import { sentence } from "../core/format";
import { CallError } from "../core/rpc";

const ADVICE: Record<string, string> = {
  NOT_CONNECTED: "It is tried again by itself; look at the status bar.",
  ENOSPC: "The machine's disk is full. Delete something and try again.",
  EACCES: "The user app may not do this; in a terminal, sudo can.",
  EPERM: "The user app may not do this; in a terminal, sudo can.",
  EROFS: "That file system is read-only.",
  LIMIT_EXCEEDED: "Stop or delete a sandbox first.",
  NOT_AUTHENTICATED: "Reload the page to sign in.",
};

export function problem(what: string, error: unknown): void {
  const why = error instanceof Error ? error.message : String(error);
  const code = error instanceof ApiError || error instanceof CallError ? error.code : "";
  const advice = ADVICE[code];
  toast.error(what, {
    description: [sentence(why), advice].filter(Boolean).join(" "),
    duration: 9000,
  });
}

export function done(what: string): void {
  toast.success(what, { duration: 2500 });
}
