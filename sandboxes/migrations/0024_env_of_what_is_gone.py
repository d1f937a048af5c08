from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

BATCH = 1000


def clear(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Forget the variables of sandboxes that nobody can bring back, as is done since with each that goes."""
    rows = apps.get_model("sandboxes", "Sandbox").objects
    gone, last = rows.filter(machine_removed=True).exclude(env={}).order_by("pk"), 0
    while keys := list(gone.filter(pk__gt=last).values_list("pk", flat=True)[:BATCH]):
        rows.filter(pk__in=keys).update(env={})
        last = keys[-1]


class Migration(migrations.Migration):
    # Batches of their own transactions: there may be millions of rows, and nothing is lost by half of it
    atomic = False

    dependencies = [
        ('sandboxes', '0023_sandbox_stopped_last'),
    ]

    operations = [
        # What is forgotten does not come back, and nothing needs it
        migrations.RunPython(clear, migrations.RunPython.noop, elidable=True),
    ]
