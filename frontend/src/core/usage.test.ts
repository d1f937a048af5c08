import { describe, expect, it } from "vitest";
import { amount, days, months, share } from "./usage";

describe("months", () => {
  it("have their days, also in a leap year", () => {
    expect(days("2026-11")).toEqual({ from: "2026-11-01", to: "2026-11-30" });
    expect(days("2028-02").to).toBe("2028-02-29");
    expect(days("2026-12").to).toBe("2026-12-31");
  });

  it("go back to the first that is known, over the year's end", () => {
    expect(months("2025-11-01", "2026-02")).toEqual(["2026-02", "2026-01", "2025-12", "2025-11"]);
    expect(months(null, "2026-02")).toEqual(["2026-02"]);
    expect(months("2026-03-01", "2026-02")).toEqual(["2026-02"]);
  });
});

describe("amounts", () => {
  it("have as many places as say something", () => {
    expect([0, 0.001, 0.5, 12.345, 1234.5].map(amount)).toEqual(["0", "<0.01", "0.5", "12.35", "1,235"]);
  });
});

describe("the cap's share", () => {
  const spending = {
    cap: "10.00",
    spent: "8.000000",
    currency: "USD",
    level: "near",
    month: "2026-11",
    month_ends: "",
  } as const;

  it("is at most all of it, and nothing without a cap", () => {
    expect(share(spending)).toBe(80);
    expect(share({ ...spending, spent: "99" })).toBe(100);
    expect(share({ ...spending, cap: "0.00", spent: "0" })).toBe(100);
    expect(share({ ...spending, cap: null })).toBeNull();
  });
});
