/** Volumes and snapshots in words, and what can be done with each. */
import type { Volume } from "./api";

export type VolumeAct = "boot" | "copy" | "attach" | "snapshot" | "grow" | "lineage" | "delete";

const NEEDS: Record<VolumeAct, string> = {
  boot: "sandbox.create",
  copy: "volume.create",
  attach: "volume.attach",
  snapshot: "volume.snapshot",
  grow: "volume.create",
  lineage: "volume.view",
  delete: "volume.delete",
};
const OF: Record<Volume["kind"], readonly VolumeAct[]> = {
  volume: ["boot", "attach", "snapshot", "grow", "lineage", "delete"],
  snapshot: ["boot", "copy", "attach", "lineage", "delete"],
};
/** States in which a workspace has let go of what it will take again. */
const RESTING = ["stopped"];

type Uses = Pick<Volume, "used_by">;

/** The sandbox that has a volume for itself now; a snapshot is nobody's. */
export function holder({ used_by }: Uses): Volume["used_by"][number] | null {
  return used_by.find(({ state, read_only }) => !read_only && !RESTING.includes(state)) ?? null;
}

/** What somebody with these permissions can do with it now, in the order of menus. */
export function volumeActs(volume: Volume, may: ReadonlySet<string>): VolumeAct[] {
  const taken = holder(volume) !== null;
  return OF[volume.kind].filter((act) => {
    if (act === "boot" && (!volume.bootable || taken)) return false;
    if ((act === "attach" || act === "delete") && taken) return false;
    return may.has(NEEDS[act]);
  });
}

/** Where it comes from, as a clause. */
export function madeFrom(volume: Pick<Volume, "kind" | "base" | "source" | "taken_of" | "bootable">): string {
  if (volume.source) return `of ${volume.source.slug}`;
  if (volume.taken_of) return `of sandbox ${volume.taken_of}`;
  if (volume.base) return `from ${volume.base.slug}`;
  return volume.bootable ? "from the guest's system" : "empty";
}

/** Of its capacity, from 0 to 1: what its own disk and what it shares take, the guest's image left out. */
export function filled({ flattened, capacity }: Pick<Volume, "flattened" | "capacity">): number {
  return Math.min(1, capacity > 0 ? flattened / capacity : 0);
}

/** As the server has it. */
export const SLUG = "[a-z0-9](?:[a-z0-9\\-]{0,30}[a-z0-9])";

/** A slug that is not taken by what a name suggests: "Tide tables" of a minute becomes "tide-tables-1405". */
export function suggested(name: string, now: Date): string {
  const words = name
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 22)
    .replace(/-+$/, "");
  const two = (value: number) => String(value).padStart(2, "0");
  const stamp = `${two(now.getDate())}${two(now.getHours())}${two(now.getMinutes())}`;
  return words ? `${words}-${stamp}` : `snapshot-${stamp}`;
}
