/** REST: the calls pages make, and the error every one of them may throw. */

import type { components } from "../gen/api";

type Schemas = components["schemas"];
export type Sandbox = Schemas["SandboxOut"];
export type TimelineEntry = Schemas["TimelineOut"];
export type Resources = Schemas["Resources"];
export type Token = Schemas["TokenOut"];
export type Member = Schemas["MemberOut"];
export type Me = Schemas["Me"];
export type Secret = Schemas["SecretOut"];
/** As one sandbox has it: what stands for it there, and whether one of its own hides it. */
export type SandboxSecret = Schemas["SandboxSecretOut"];
export type Exposure = Schemas["ExposureOut"];
export type ExposureWanted = Required<Schemas["ExposureIn"]>;
export type Port = Schemas["PortOut"];
export type SshAddress = Schemas["SshAddress"];
export type SecretWanted = Required<Schemas["SecretIn"]>;
export type SecretRotation = Schemas["SecretRotation"];
export type Volume = Schemas["VolumeShown"];
export type Lineage = Schemas["LineageOut"];
export type Checkpoint = Schemas["CheckpointOut"];
export type CheckpointFile = Schemas["FileOut"];
export type Difference = Schemas["DifferenceOut"];
export type VolumeWanted = Required<Schemas["VolumeIn"]>;
export type MountWanted = Required<Schemas["MountIn"]>;
/** The two lists of what outlives sandboxes. */
export type Shelf = "volumes" | "snapshots";
type Policy = Pick<Schemas["NetworkOut"], "allow_net" | "deny_net" | "ask_net">;

export class ApiError extends Error {
  readonly code: string;
  readonly status: number;
  constructor(message: string, code: string, status: number) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

interface Answer {
  status: number;
  ok: boolean;
  text(): Promise<string>;
}

export type Fetch = (
  url: string,
  options: { method: string; headers: Record<string, string>; body?: string },
) => Promise<Answer>;

export class Api {
  #fetch: Fetch;
  #csrf: () => string;
  #organization: string;

  constructor(fetch: Fetch, csrf: () => string, organization: string) {
    this.#fetch = fetch;
    this.#csrf = csrf;
    this.#organization = organization;
  }

  async #ask<T>(method: string, path: string, body?: object): Promise<T> {
    const headers: Record<string, string> = { Accept: "application/json", "X-Deno-Org": this.#organization };
    if (method !== "GET") headers["X-CSRFToken"] = this.#csrf();
    if (body) headers["Content-Type"] = "application/json";
    let answer: Answer;
    try {
      answer = await this.#fetch(`/api/v1${path}`, {
        method,
        headers,
        ...(body ? { body: JSON.stringify(body) } : {}),
      });
    } catch {
      throw new ApiError(
        "The server does not answer. It may be restarting; try again in a moment.",
        "OFFLINE",
        0,
      );
    }
    const text = await answer.text();
    if (answer.ok) return (text ? JSON.parse(text) : null) as T;
    let code = "ERROR";
    let message = `The server answered with status ${answer.status}.`;
    try {
      const problem = JSON.parse(text) as { code?: string; message?: string };
      code = problem.code ?? code;
      message = problem.message ?? message;
    } catch {
      // An error page, not ours to read.
    }
    if (answer.status === 401) message = "You are signed out. Sign in again to go on.";
    throw new ApiError(message, code, answer.status);
  }

  me(): Promise<Me> {
    return this.#ask("GET", "/me");
  }

  sandboxes(): Promise<Sandbox[]> {
    return this.#ask("GET", "/sandboxes");
  }

  /** Deleted workspaces that can still be brought back. */
  sandboxesDeleted(): Promise<Sandbox[]> {
    return this.#ask("GET", "/sandboxes?state=deleted");
  }

  sandbox(id: string): Promise<Sandbox> {
    return this.#ask("GET", `/sandboxes/${id}`);
  }

  /** `root`: the volume or snapshot that it boots from, by id or slug. */
  sandboxCreate(body: { name: string; memory_mb: number; root?: string }): Promise<Sandbox> {
    return this.#ask("POST", "/sandboxes", { ...body, kind: "workspace" });
  }

  sandboxStart(id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/start`);
  }

  sandboxStop(id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/stop`);
  }

  sandboxSuspend(id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/suspend`);
  }

  sandboxResume(id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/resume`);
  }

  /** The new one. */
  sandboxFork(id: string, body: { name?: string; lifetime_seconds?: number }): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/fork`, body);
  }

  sandboxExtend(id: string, seconds: number): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/extend`, { seconds });
  }

  sandboxRestore(id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${id}/restore`);
  }

  sandboxRename(id: string, name: string): Promise<Sandbox> {
    return this.#ask("PATCH", `/sandboxes/${id}`, { name });
  }

  /** Null: as the installation has it for workspaces; 0: never. */
  sandboxIdle(id: string, minutes: number | null): Promise<Sandbox> {
    return this.#ask("PATCH", `/sandboxes/${id}`, { idle_minutes: minutes });
  }

  /** Oldest first. */
  timeline(id: string): Promise<TimelineEntry[]> {
    return this.#ask("GET", `/sandboxes/${id}/timeline`);
  }

  /** What the machine says of itself; asking is no activity. */
  resources(id: string): Promise<Resources> {
    return this.#ask("GET", `/sandboxes/${id}/resources`);
  }

  sandboxDelete(id: string): Promise<void> {
    return this.#ask("DELETE", `/sandboxes/${id}`);
  }

  network(id: string): Promise<Schemas["NetworkOut"]> {
    return this.#ask("GET", `/sandboxes/${id}/network`);
  }

  /** `version`: of the policy that was looked at; another one since is a conflict. */
  networkSet(id: string, policy: Policy, version: number): Promise<Schemas["NetworkChanged"]> {
    return this.#ask("PUT", `/sandboxes/${id}/network`, { ...policy, version });
  }

  networkAllow(id: string, patterns: string[]): Promise<Schemas["NetworkChanged"]> {
    return this.#ask("POST", `/sandboxes/${id}/network/allow`, { patterns });
  }

  networkDeny(id: string, patterns: string[]): Promise<Schemas["NetworkChanged"]> {
    return this.#ask("POST", `/sandboxes/${id}/network/deny`, { patterns });
  }

  /** Newest first. */
  connections(
    id: string,
    wanted: { after?: number; before?: number; host?: string; verdict?: string; limit?: number },
  ): Promise<Schemas["ConnectionOut"][]> {
    const query = Object.entries(wanted)
      .filter(([, value]) => value !== "")
      .map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
    return this.#ask("GET", `/sandboxes/${id}/network/connections?${query.join("&")}`);
  }

  networkSummary(id: string, window: "hour" | "day" | "week"): Promise<Schemas["NetworkSummary"]> {
    return this.#ask("GET", `/sandboxes/${id}/network/summary?window=${window}`);
  }

  /** A list that allows what was reached; `fold`: hosts of one domain as one pattern. */
  networkProposal(id: string, days: number, fold: boolean): Promise<Schemas["ProposalOut"]> {
    return this.#ask("GET", `/sandboxes/${id}/network/proposal?days=${days}&fold=${fold}`);
  }

  networkTemplates(): Promise<Schemas["HostListOut"][]> {
    return this.#ask("GET", "/network/templates");
  }

  /** What is wrong with each pattern that is none. */
  patternsCheck(patterns: string[]): Promise<Schemas["PatternProblem"][]> {
    return this.#ask("POST", "/network/check", { patterns });
  }

  tokens(): Promise<Token[]> {
    return this.#ask("GET", "/tokens");
  }

  tokenCreate(
    body: Pick<Schemas["TokenIn"], "name" | "kind" | "scopes"> & { expires_in_days?: number },
  ): Promise<Schemas["TokenMade"]> {
    return this.#ask("POST", "/tokens", body);
  }

  tokenRevoke(id: number): Promise<void> {
    return this.#ask("DELETE", `/tokens/${id}`);
  }

  secrets(): Promise<Secret[]> {
    return this.#ask("GET", "/secrets");
  }

  secretCreate(body: SecretWanted): Promise<Secret> {
    return this.#ask("POST", "/secrets", body);
  }

  sandboxSecrets(id: string): Promise<SandboxSecret[]> {
    return this.#ask("GET", `/sandboxes/${id}/secrets`);
  }

  sandboxSecretCreate(id: string, body: Omit<SecretWanted, "labels">): Promise<SandboxSecret> {
    return this.#ask("POST", `/sandboxes/${id}/secrets`, body);
  }

  secretRotate(id: string, body: SecretRotation): Promise<Secret> {
    return this.#ask("POST", `/secrets/${id}/rotate`, body);
  }

  secretRevoke(id: string): Promise<void> {
    return this.#ask("DELETE", `/secrets/${id}`);
  }

  exposures(id: string): Promise<Exposure[]> {
    return this.#ask("GET", `/sandboxes/${id}/exposures`);
  }

  expose(id: string, body: ExposureWanted): Promise<Schemas["ExposureMade"]> {
    return this.#ask("POST", `/sandboxes/${id}/exposures`, body);
  }

  unexpose(id: string, exposure: string): Promise<void> {
    return this.#ask("DELETE", `/sandboxes/${id}/exposures/${exposure}`);
  }

  ports(id: string): Promise<Port[]> {
    return this.#ask("GET", `/sandboxes/${id}/ports`);
  }

  sshAddress(id: string): Promise<SshAddress> {
    return this.#ask("GET", `/sandboxes/${id}/ssh`);
  }

  /** A page of them, newest first; `next` is the cursor of the one that follows. */
  shelf(
    shelf: Shelf,
    wanted: { search?: string; cursor?: string; state?: "ready" | "deleted"; limit?: number } = {},
  ): Promise<Schemas["VolumePage"]> {
    const query = Object.entries(wanted)
      .filter(([, value]) => value !== "")
      .map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
    return this.#ask("GET", `/${shelf}?${query.join("&")}`);
  }

  lineage(shelf: Shelf, id: string): Promise<Lineage> {
    return this.#ask("GET", `/${shelf}/${id}/lineage`);
  }

  shelfDelete(shelf: Shelf, id: string): Promise<void> {
    return this.#ask("DELETE", `/${shelf}/${id}`);
  }

  shelfRestore(shelf: Shelf, id: string): Promise<unknown> {
    return this.#ask("POST", `/${shelf}/${id}/restore`);
  }

  volumeCreate(body: VolumeWanted): Promise<unknown> {
    return this.#ask("POST", "/volumes", body);
  }

  volumeGrow(id: string, capacity: string): Promise<unknown> {
    return this.#ask("PATCH", `/volumes/${id}`, { capacity });
  }

  volumeSnapshot(id: string, slug: string): Promise<unknown> {
    return this.#ask("POST", `/volumes/${id}/snapshot`, { slug });
  }

  sandboxSnapshot(id: string, slug: string, memory: boolean): Promise<Schemas["VolumeOut"]> {
    return this.#ask("POST", `/sandboxes/${id}/snapshot`, { slug, memory });
  }

  /** Newest first. */
  checkpoints(sandbox: string): Promise<Checkpoint[]> {
    return this.#ask("GET", `/sandboxes/${sandbox}/checkpoints`);
  }

  checkpointTake(sandbox: string, note: string): Promise<Checkpoint> {
    return this.#ask("POST", `/sandboxes/${sandbox}/checkpoints`, { note });
  }

  checkpointDrop(sandbox: string, id: string): Promise<void> {
    return this.#ask("DELETE", `/sandboxes/${sandbox}/checkpoints/${id}`);
  }

  checkpointRestore(sandbox: string, id: string): Promise<Sandbox> {
    return this.#ask("POST", `/sandboxes/${sandbox}/checkpoints/${id}/restore`);
  }

  /** Null: as the installation does; 0: never. */
  checkpointEvery(sandbox: string, minutes: number | null): Promise<Sandbox> {
    return this.#ask("PUT", `/sandboxes/${sandbox}/checkpoints/every`, { minutes });
  }

  checkpointFiles(sandbox: string, id: string, path: string): Promise<Schemas["FilesOut"]> {
    return this.#ask("GET", `/sandboxes/${sandbox}/checkpoints/${id}/files?path=${encodeURIComponent(path)}`);
  }

  checkpointDifferences(sandbox: string, id: string, since: string): Promise<Schemas["DifferencesOut"]> {
    return this.#ask("GET", `/sandboxes/${sandbox}/checkpoints/${id}/differences?since=${since}`);
  }

  attach(sandbox: string, body: MountWanted): Promise<unknown> {
    return this.#ask("POST", `/sandboxes/${sandbox}/volumes`, body);
  }

  detach(sandbox: string, volume: string): Promise<void> {
    return this.#ask("DELETE", `/sandboxes/${sandbox}/volumes/${volume}`);
  }

  members(): Promise<Member[]> {
    return this.#ask("GET", "/members");
  }

  memberInvite(email: string, role: string): Promise<Schemas["Invited"]> {
    return this.#ask("POST", "/members", { email, role });
  }

  invitationRenew(id: number): Promise<Schemas["Invited"]> {
    return this.#ask("POST", `/members/${id}/invitation`);
  }

  memberChange(id: number, role: string): Promise<Member> {
    return this.#ask("PATCH", `/members/${id}`, { role });
  }

  usage(days: { from: string; to: string }): Promise<Schemas["UsageOut"]> {
    return this.#ask("GET", `/usage?from=${days.from}&to=${days.to}`);
  }

  memberRemove(id: number): Promise<void> {
    return this.#ask("DELETE", `/members/${id}`);
  }
}
