"""Django's settings for every real process; what an installation may change comes from ide/env.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csp.constants import NONCE, NONE, SELF

from ide.env import env

ENV = env()
BASE_DIR = Path(__file__).resolve().parents[2]

DEBUG = False
SECRET_KEY = ENV.secret_key()
ALLOWED_HOSTS = ENV.hosts
CSRF_TRUSTED_ORIGINS = ENV.origins

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_vite",
    "csp",
    "axes",
    # For its static files only: Swagger UI
    "ninja",
    "channels",
    "sandboxes",
    "ide",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "ide.static.StaticFiles",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "ide.urls"
ASGI_APPLICATION = "ide.asgi.application"
# Neither SDK follows a redirect that a missing slash would cause.
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
            ],
        },
    },
]

DATABASES = {"default": ENV.database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "sandboxes.User"
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"

AXES_FAILURE_LIMIT = 8
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_LOCKOUT_TEMPLATE = "errors/locked_out.html"

SESSION_COOKIE_NAME = "atoll_session"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_NAME = "atoll_csrf"
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = ENV.origin.startswith("https://")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 3600 * 24 * 30 if ENV.origin.startswith("https://") else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if ENV.origin.startswith("https://") else None
X_FRAME_OPTIONS = "DENY"

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        # xterm.js writes style elements and has no way to give them a nonce.
        "style-src": [SELF, "'unsafe-inline'"],
        "img-src": [SELF, "data:", "blob:"],
        "font-src": [SELF, "data:"],
        "connect-src": [SELF],
        "worker-src": [SELF, "blob:"],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    },
}

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [path for path in (BASE_DIR / "frontend" / "dist",) if path.is_dir()]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
# Vite names its output by content; Django's manifest storage would hash it again and load the application twice.
WHITENOISE_IMMUTABLE_FILE_TEST = r"^.+[-.][0-9a-zA-Z_-]{8,}\.\w+$"
WHITENOISE_ALLOW_ALL_ORIGINS = False
DJANGO_VITE = {
    "default": {
        "dev_mode": False,
        "manifest_path": BASE_DIR / "frontend" / "dist" / "manifest.json",
        "static_url_prefix": "",
    },
}

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

ATOLL: dict[str, Any] = {
    "region": ENV.region,
    "quota_concurrent": ENV.quota_concurrent,
    "idle_minutes": ENV.idle_minutes,
    "checkpoint_minutes": ENV.checkpoint_minutes,
    "checkpoints_kept": ENV.checkpoints_kept,
    "low_memory_mib": ENV.low_memory_mib,
    "stray_hours": ENV.stray_hours,
    "audit_days": ENV.audit_days,
    "egress_days": ENV.egress_days,
    "egress_rows": ENV.egress_rows,
    "quota_vcpus": ENV.quota_vcpus,
    "quota_memory_mib": ENV.quota_memory_mib,
    "quota_disk_gib": ENV.quota_disk_gib,
    "quota_creates_per_minute": ENV.quota_creates_per_minute,
    "max_lifetime": ENV.max_lifetime,
    "price_cpu_hour": ENV.price_cpu_hour,
    "price_memory_gb_hour": ENV.price_memory_gb_hour,
    "price_volume_gib_month": ENV.price_volume_gib_month,
    "currency": ENV.currency,
    "origin": ENV.origin,
    "trusted_origins": ENV.origins,
    "node_socket": ENV.node_socket,
    "node_key": ENV.node_key,
    "secrets_key": ENV.secrets_key,
    "authority": ENV.authority,
    "expose_domain": ENV.expose_domain,
    "expose_public": ENV.expose_public,
    "ssh_host": ENV.ssh_hostname,
}

from ide.settings.celery import *  # noqa: E402, F403
from ide.settings.logging import *  # noqa: E402, F403
