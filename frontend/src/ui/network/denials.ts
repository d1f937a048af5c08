/** Tells a person in passing what his sandbox was denied, with the one click that allows it. */
import { toast } from "svelte-sonner";
import type { Api } from "../../core/api";
import { advice, type Denial, type Network, place, why } from "../../core/network";
import { done, problem } from "../notify";

/** Allow it, and say what came of that; null if it is not allowed. */
export async function allow(api: Api, sandbox: string, pattern: string): Promise<Network | null> {
  try {
    const answer = await api.networkAllow(sandbox, [pattern]);
    done(
      answer.applied ? `${pattern} is allowed` : `${pattern} will be allowed when the machine's host answers`,
    );
    return answer;
  } catch (error) {
    problem(`${pattern} was not allowed`, error);
    return null;
  }
}

/** One notice a host: what comes again replaces it. */
export function tellDenied(api: Api, may: ReadonlySet<string>, denial: Denial): void {
  if (denial.remedy === "done") return;
  const network = `/sandboxes/${denial.sandbox}/details#network`;
  const open = { label: "Why?", onClick: () => window.open(network, "_blank", "noopener") };
  const allows = denial.remedy === "allow" && may.has("sandbox.network");
  toast(denial.host ? `${place(denial)} was denied` : "Many hosts were denied", {
    id: `denied ${denial.sandbox} ${denial.host} ${denial.port}`,
    description: [why(denial.detail), advice(denial, may)].filter(Boolean).join(" "),
    duration: 12_000,
    ...(allows
      ? {
          action: { label: "Allow", onClick: () => void allow(api, denial.sandbox, denial.pattern) },
          cancel: open,
        }
      : { action: { ...open, label: denial.host ? "Why?" : "Show" } }),
  });
}
