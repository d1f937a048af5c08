/** Tells a person in passing what his sandbox was denied, or asks him, with the one click that answers. */
import { toast } from "svelte-sonner";
import type { Api } from "../../core/api";
import { advice, type Denial, headline, type Network, waits, why } from "../../core/network";
import { done, problem } from "../notify";

type Answer = "allow" | "deny";
const SAID = {
  allow: {
    now: "is allowed",
    later: "will be allowed when the machine's host answers",
    not: "was not allowed",
  },
  deny: { now: "is denied", later: "will be denied when the machine's host answers", not: "was not denied" },
};

/** Allow or deny it from now on, and say what came of that; null if nothing did. */
export async function decide(
  api: Api,
  sandbox: string,
  pattern: string,
  answer: Answer,
): Promise<Network | null> {
  const said = SAID[answer];
  try {
    const network = await (answer === "allow"
      ? api.networkAllow(sandbox, [pattern])
      : api.networkDeny(sandbox, [pattern]));
    done(`${pattern} ${network.applied ? said.now : said.later}`);
    return network;
  } catch (error) {
    problem(`${pattern} ${said.not}`, error);
    return null;
  }
}

/** One notice a host: what comes again replaces it. */
export function tellDenied(api: Api, may: ReadonlySet<string>, denial: Denial): void {
  if (denial.remedy === "done") return;
  const network = `/sandboxes/${denial.sandbox}/details#network`;
  const open = { label: "Why?", onClick: () => window.open(network, "_blank", "noopener") };
  const allows = denial.remedy === "allow" && may.has("sandbox.network");
  const left = denial.waits_until ? Date.parse(denial.waits_until) - Date.now() : 0;
  const asks = waits(denial, Date.now());
  const answer = (what: Answer) => () => void decide(api, denial.sandbox, denial.pattern, what);
  toast(headline(denial, Date.now()), {
    id: `${denial.kind} ${denial.sandbox} ${denial.host} ${denial.port}`,
    description: [why(denial.detail), advice(denial, may)].filter(Boolean).join(" "),
    duration: asks ? left : 12_000,
    ...(allows
      ? {
          action: { label: "Allow", onClick: answer("allow") },
          cancel: asks ? { label: "Deny", onClick: answer("deny") } : open,
        }
      : { action: { ...open, label: denial.host ? "Why?" : "Show" } }),
  });
}
