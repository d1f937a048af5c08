/** REST and events for the page's person and organization. */
import { Api } from "../core/api";
import { Events } from "../core/events";
import type { PageConfig } from "./config";
import { socketTo } from "./sockets";

/** What proves that a request comes from a page of ours. */
export function csrf(): string {
  return /(?:^|; )atoll_csrf=([^;]*)/.exec(document.cookie)?.[1] ?? "";
}

export function serverApi(config: PageConfig): Api {
  return new Api(
    (url, options) => fetch(url, { ...options, credentials: "same-origin" }),
    csrf,
    config.organization.slug,
  );
}

export function serverEvents(config: PageConfig): Events {
  return new Events(socketTo(`/ws/events?organization=${encodeURIComponent(config.organization.slug)}`));
}
