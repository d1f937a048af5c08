import { describe, expect, it } from "vitest";
import type { Volume } from "./api";
import { filled, holder, madeFrom, SLUG, suggested, volumeActs } from "./volumes";

const volume: Volume = {
  id: "vol_loc_1",
  kind: "volume",
  slug: "data",
  state: "ready",
  region: "loc",
  capacity: 1000,
  allocated: 100,
  flattened: 250,
  bootable: false,
  base: null,
  source: null,
  taken_of: null,
  memory_mb: 0,
  creator: "ada",
  created_at: "2026-11-26T10:00:00.000Z",
  deleted_at: null,
  restorable_until: null,
  used_by: [],
};
const use = { id: "sbx_loc_1", name: "Work", state: "running", path: "/data", read_only: false };
const all = new Set([
  "sandbox.create",
  "volume.create",
  "volume.attach",
  "volume.snapshot",
  "volume.view",
  "volume.delete",
]);

describe("volumes", () => {
  it("are somebody's while a sandbox has them, and nobody's once it is stopped", () => {
    expect(holder(volume)).toBeNull();
    expect(holder({ used_by: [use] })).toBe(use);
    expect(holder({ used_by: [{ ...use, state: "stopped" }] })).toBeNull();
    expect(holder({ used_by: [{ ...use, read_only: true }] })).toBeNull();
  });

  it("can be attached, booted from and deleted while nobody has them", () => {
    expect(volumeActs(volume, all)).toEqual(["attach", "snapshot", "grow", "lineage", "delete"]);
    expect(volumeActs({ ...volume, bootable: true }, all)).toContain("boot");
    expect(volumeActs({ ...volume, bootable: true, used_by: [use] }, all)).toEqual([
      "snapshot",
      "grow",
      "lineage",
    ]);
    expect(volumeActs(volume, new Set(["volume.view"]))).toEqual(["lineage"]);
  });

  it("as snapshots are never somebody's, and volumes are made from them", () => {
    const snapshot = { ...volume, kind: "snapshot", bootable: true } as const;
    expect(volumeActs(snapshot, all)).toEqual(["boot", "copy", "attach", "lineage", "delete"]);
  });

  it("say where they come from, and how full they are", () => {
    expect(madeFrom(volume)).toBe("empty");
    expect(madeFrom({ ...volume, bootable: true })).toBe("from the guest's system");
    expect(madeFrom({ ...volume, base: { id: "s", slug: "monday" } })).toBe("from monday");
    expect(madeFrom({ ...volume, source: { id: "v", slug: "my-data" } })).toBe("of my-data");
    expect(madeFrom({ ...volume, taken_of: "sbx_loc_1" })).toBe("of sandbox sbx_loc_1");
    expect(filled(volume)).toBe(0.25);
    expect(filled({ flattened: 3000, capacity: 1000 })).toBe(1);
  });

  it("are offered a slug that the server takes", () => {
    const at = new Date(2026, 10, 6, 14, 5);
    expect(suggested("Tide tables!", at)).toBe("tide-tables-061405");
    expect(suggested("…", at)).toBe("snapshot-061405");
    for (const name of ["Tide tables", "a".repeat(90), "x - ".repeat(20), "Ünïcödé"])
      expect(suggested(name, at)).toMatch(new RegExp(`^${SLUG}$`, "v"));
  });
});
