/** Where Swagger UI and the document that it shows are. */
export interface DocsConfig {
  schema: string;
  script: string;
  styles: string;
}

/** What the server tells a page about who looks at it. */
export interface PageConfig {
  island: string;
  organization: { slug: string; name: string };
  may: string[];
  you: string;
  role: string;
  origin: string;
  sandbox?: string;
  /** After how many idle minutes the installation suspends workspaces; 0: never. */
  idle_minutes?: number;
  /** After how many minutes of use it takes checkpoints of workspaces; 0: never. */
  checkpoint_minutes?: number;
  docs?: DocsConfig;
}

export function readConfig(): PageConfig | null {
  const element = document.getElementById("page-config");
  return element ? (JSON.parse(element.textContent ?? "null") as PageConfig) : null;
}
