/**
 * What the page of one workspace shows: a state machine over what the server tells and what the person presses.
 * A suspended machine is resumed by itself once, when the page is opened; after that, a person has to want it.
 */
import type { Sandbox } from "./api";

export interface PageState {
  sandbox: Sandbox | null;
  /** Why there is nothing here (any more). */
  gone: string;
  /** The machine ran while this page was open: there are screens and texts to keep in sight. */
  entered: boolean;
  /** A resume was asked for and not heard of yet. */
  asked: boolean;
  /** The page has resumed by itself. */
  tried: boolean;
  /** Why the last resume or start was refused. */
  problem: string;
}

export const BEGINNING: PageState = {
  sandbox: null,
  gone: "",
  entered: false,
  asked: false,
  tried: false,
  problem: "",
};

export type Input =
  | { kind: "sandbox"; sandbox: Sandbox }
  | { kind: "gone"; why: string }
  /** The person wants it to go on. */
  | { kind: "press" }
  | { kind: "refused"; why: string };

export interface Step {
  state: PageState;
  /** The server is to be asked for a resume. */
  resume: boolean;
}

const PUT_OFF = "it could not be resumed now, and is as it was";

export function next(state: PageState, input: Input): Step {
  switch (input.kind) {
    case "gone":
      return { state: { ...state, gone: input.why, asked: false }, resume: false };
    case "refused":
      return { state: { ...state, asked: false, problem: input.why }, resume: false };
    case "press": {
      const resume = state.sandbox?.state === "suspended" && !state.asked;
      return { state: resume ? { ...state, asked: true, problem: "" } : state, resume };
    }
    case "sandbox": {
      const { sandbox } = input;
      const seen: PageState = { ...state, sandbox, gone: "" };
      if (sandbox.state === "deleted")
        return { state: { ...seen, gone: "This workspace was deleted.", asked: false }, resume: false };
      if (sandbox.state === "suspended") {
        const resume = !state.entered && !state.tried;
        if (resume) return { state: { ...seen, asked: true, tried: true }, resume };
        // A resume that was put off: the reason of the state is still that of the suspend, and the note says why.
        const putOff = state.sandbox?.state === "resuming";
        return {
          state: putOff ? { ...seen, asked: false, problem: sandbox.note || PUT_OFF } : seen,
          resume,
        };
      }
      const running = sandbox.state === "running";
      return {
        // Whatever else it is now, it is not what was asked about and refused.
        state: { ...seen, entered: state.entered || running, asked: false, problem: "" },
        resume: false,
      };
    }
  }
}

export type Phase = "suspending" | "suspended" | "resuming";

export type Scene =
  | { kind: "loading" }
  | { kind: "gone"; why: string; restorable: Sandbox | null }
  /** The machine answers: everything is live. */
  | { kind: "work"; sandbox: Sandbox }
  /** Screens and texts stay in sight, dimmed, under what is to be said. */
  | { kind: "paused"; sandbox: Sandbox; phase: Phase; problem: string }
  /** Nothing to see yet, or any more: the whole place is for what is to be said. */
  | { kind: "boot"; sandbox: Sandbox; phase: "starting" | "stopping" | "stopped" | Phase; problem: string };

export function scene(state: PageState): Scene {
  const { sandbox, gone, problem } = state;
  if (gone) return { kind: "gone", why: gone, restorable: sandbox?.restorable_until ? sandbox : null };
  if (!sandbox) return { kind: "loading" };
  switch (sandbox.state) {
    case "running":
      return { kind: "work", sandbox };
    case "queued":
    case "starting":
      return { kind: "boot", sandbox, phase: "starting", problem };
    case "suspending":
    case "suspended":
    case "resuming": {
      const phase = state.asked ? "resuming" : sandbox.state;
      return { kind: state.entered ? "paused" : "boot", sandbox, phase, problem };
    }
    case "stopping":
      return { kind: "boot", sandbox, phase: "stopping", problem };
    default:
      return { kind: "boot", sandbox, phase: "stopped", problem };
  }
}

/** Whether a key press means "go on": not one that moves the focus, belongs to the browser, or only modifies. */
export function wakes(event: {
  key: string;
  ctrlKey: boolean;
  altKey: boolean;
  metaKey: boolean;
  repeat: boolean;
}): boolean {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return false;
  return event.key.length === 1 || ["Enter", "Backspace", "Delete", "Escape"].includes(event.key)
    ? true
    : event.key.startsWith("Arrow");
}
