"""One page of a list, newest first, behind a cursor that clients give back as it was."""

from __future__ import annotations

from django.db.models import Model, QuerySet

from sandboxes.errors import Invalid

PAGE = 30
LARGEST_PAGE = 100


def page_of[M: Model](rows: QuerySet[M], *, limit: int, cursor: str) -> tuple[list[M], str]:
    """At most `limit` rows that are older than the cursor, and the cursor of those behind them, "" on the last page.

    Invalid for a limit out of bounds, and a cursor that no list gave.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise Invalid(f"limit is {limit}: it must be from 1 to {LARGEST_PAGE}", field="limit")
    if cursor:
        if not cursor.isdecimal() or len(cursor) > 18:
            raise Invalid("the cursor is none that this list gave", field="cursor")
        rows = rows.filter(pk__lt=int(cursor))
    found = list(rows.order_by("-pk")[: limit + 1])
    return found[:limit], str(found[limit - 1].pk) if len(found) > limit else ""
