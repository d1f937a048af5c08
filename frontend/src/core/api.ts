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
export type SecretWanted = Required<Schemas["SecretIn"]>;
export type SecretRotation = Schemas["SecretRotation"];
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

  sandboxCreate(body: { name: string; memory_mb: number }): Promise<Sandbox> {
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
