/** A sandbox for tests: a workspace that runs, but for what a test says. */
import type { Sandbox } from "./api";

export function sample(change: Partial<Sandbox> = {}): Sandbox {
  return {
    id: "sbx_loc_1",
    name: "demo",
    kind: "workspace",
    state: "running",
    state_reason: "",
    queue_position: 0,
    unresponsive: false,
    region: "loc",
    memory_mb: 1280,
    vcpus: 2,
    disk_gib: 10,
    labels: {},
    session: false,
    stages: {},
    created_at: "2026-11-25T10:00:00.000Z",
    started_at: "2026-11-25T10:00:02.000Z",
    stopped_at: null,
    stop_at: null,
    stop_reason: null,
    stop_detail: "",
    stopped_by: null,
    creator: "ada@example.org",
    origin: "pool",
    note: "",
    next_step: "",
    idle_minutes: null,
    active_at: null,
    deleted_at: null,
    restorable_until: null,
    forked_from: null,
    network_version: 0,
    ...change,
  };
}
