/** The REST shapes of the lifecycle until the generated ones have them; this file goes then. */
import type { components } from "../gen/api";

type Old = components["schemas"]["SandboxOut"];

export type SandboxState = Old["state"] | "suspending" | "suspended" | "resuming";

export interface SandboxShape extends Omit<Old, "state"> {
  state: SandboxState;
  origin: "cold" | "clone" | "pool" | "resume" | "fork" | null;
  note: string;
  next_step: "resume" | "start" | "restore" | "";
  idle_minutes: number | null;
  active_at: string | null;
  deleted_at: string | null;
  restorable_until: string | null;
  forked_from: string | null;
}

export interface TimelineShape {
  id: number;
  at: string;
  state: string;
  text: string;
  cause: string | null;
  actor: string;
  detail: string;
  stages: Record<string, number>;
  duration_seconds: number | null;
}

export interface ResourcesShape {
  memory_total: number;
  memory_available: number;
  disk_total: number;
  disk_free: number;
  load: number;
  processes: number;
  cpu_seconds: number;
}
