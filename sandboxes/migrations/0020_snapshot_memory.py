
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('sandboxes', '0019_checkpoints'),
    ]

    operations = [
        migrations.AddField(
            model_name='volume',
            name='memory_mb',
            field=models.PositiveIntegerField(default=0),
        ),
    ]
