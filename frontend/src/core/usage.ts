/** What was used, month by month, as people read it. Months are "2026-11", days of UTC as on the server. */
import type { components } from "../gen/api";

type Schemas = components["schemas"];
export type Usage = Schemas["UsageOut"];
export type UsePeriod = Schemas["UsePeriod"];
export type Spending = Schemas["SpendingOut"];

export function monthOf(now: number): string {
  return new Date(now).toISOString().slice(0, 7);
}

/** The first and last day of a month. */
export function days(month: string): { from: string; to: string } {
  const [year = 0, number = 1] = month.split("-").map(Number);
  const last = new Date(Date.UTC(year, number, 0)).getUTCDate();
  return { from: `${month}-01`, to: `${month}-${last}` };
}

/** The months from one to another, newest first; the latter alone where the former is not known or comes after it. */
export function months(begins: string | null, ends: string): string[] {
  const found: string[] = [];
  let [year = 0, number = 1] = ends.split("-").map(Number);
  const first = begins?.slice(0, 7) ?? ends;
  do {
    found.push(`${year}-${String(number).padStart(2, "0")}`);
    number -= 1;
    if (number === 0) [year, number] = [year - 1, 12];
  } while (found.length < 24 && `${year}-${String(number).padStart(2, "0")}` >= first);
  return found;
}

export function monthName(month: string): string {
  return new Date(`${month}-01T00:00:00Z`).toLocaleDateString(undefined, {
    month: "long",
    year: "numeric",
    timeZone: "UTC",
  });
}

export function dayName(at: string): string {
  return new Date(at).toLocaleDateString(undefined, {
    weekday: "short",
    day: "numeric",
    month: "short",
    timeZone: "UTC",
  });
}

/** "0", "<0.01", "1.25", "1,234": as many places as say something. */
export function amount(value: number): string {
  if (value === 0) return "0";
  if (value < 0.01) return "<0.01";
  const places = value < 100 ? 2 : 0;
  return value.toLocaleString(undefined, { maximumFractionDigits: places });
}

/** An amount of money that the server gave as decimal text. */
export function money(text: string, currency: string): string {
  const value = Number(text);
  const style = { style: "currency", currency, currencyDisplay: "narrowSymbol" } as const;
  if (value > 0 && value < 0.01) return `<${(0.01).toLocaleString(undefined, style)}`;
  return value.toLocaleString(undefined, style);
}

/** A price, with all its places. */
export function price(text: string, currency: string): string {
  return Number(text).toLocaleString(undefined, {
    style: "currency",
    currency,
    currencyDisplay: "narrowSymbol",
    minimumFractionDigits: 2,
    maximumFractionDigits: 6,
  });
}

/** How much of the cap is spent, in per cent, at most 100; null without a cap. */
export function share(spending: Spending): number | null {
  if (spending.cap === null) return null;
  const cap = Number(spending.cap);
  return cap === 0 ? 100 : Math.min(100, (Number(spending.spent) / cap) * 100);
}
