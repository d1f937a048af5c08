
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('sandboxes', '0017_host_data'),
    ]

    operations = [
        migrations.AddField(
            model_name='sandbox',
            name='checkpoint_minutes',
            field=models.PositiveIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='sandbox',
            name='checkpoint_tried_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AlterField(
            model_name='volume',
            name='kind',
            field=models.CharField(choices=[('volume', 'Volume'), ('snapshot', 'Snapshot'), ('checkpoint', 'Checkpoint')], max_length=10),
        ),
        migrations.CreateModel(
            name='Checkpoint',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('cause', models.CharField(choices=[('idle', 'it was suspended'), ('stop', 'it stopped'), ('hand', 'somebody asked for it'), ('timer', 'time had passed'), ('restore', 'an earlier one was about to be restored'), ('deploy', 'it was deployed')], max_length=10)),
                ('note', models.CharField(blank=True, max_length=200)),
                ('sandbox', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='checkpoints', to='sandboxes.sandbox')),
                ('volume', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='checkpoint', to='sandboxes.volume')),
            ],
        ),
        migrations.CreateModel(
            name='CheckpointFiles',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('listing', models.BinaryField()),
                ('checkpoint', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='files', to='sandboxes.checkpoint')),
            ],
        ),
    ]
