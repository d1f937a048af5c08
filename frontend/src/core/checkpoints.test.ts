import { describe, expect, it } from "vitest";
import { above, every, reachable } from "./checkpoints";

describe("checkpoints", () => {
  it("say how often one is taken", () => {
    expect(every(0, 60)).toBe("Never by time");
    expect(every(90, 60)).toBe("Every 1 h 30 min of use");
    expect(every(null, 60)).toBe("As usual here: every 1 h of use");
    expect(every(null, 0)).toBe("As usual here: never by time");
  });

  it("can be taken of what runs and answers, or rests", () => {
    expect(reachable({ state: "running", unresponsive: false })).toBe(true);
    expect(reachable({ state: "running", unresponsive: true })).toBe(false);
    expect(reachable({ state: "stopped", unresponsive: false })).toBe(true);
    expect(reachable({ state: "suspending", unresponsive: false })).toBe(false);
  });

  it("lead back up from a directory", () => {
    expect(above("")).toEqual([{ name: "/", path: "" }]);
    expect(above("srv/www")).toEqual([
      { name: "/", path: "" },
      { name: "srv", path: "srv" },
      { name: "www", path: "srv/www" },
    ]);
  });
});
