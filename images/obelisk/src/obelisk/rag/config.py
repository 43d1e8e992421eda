"""Settings: one table of what can be set, read from defaults, a file, the environment and the command line.

    default  <  `rag:` in the file  <  OBELISK_RAG__NAME  <  NAME  <  --set name=value

The file is the first of $OBELISK_CONFIG, ~/.config/obelisk/config.yaml, /etc/obelisk/config.yaml, ./obelisk.yaml. A
secret NAME may instead be given as NAME_FILE, the path of a file that holds it. All mistakes are reported together.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


class ConfigError(Exception):
    """Everything that is wrong with the settings, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Secret(str):
    """A text that is not shown."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


def _truth(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0", ""):
        return False
    raise ValueError("must be true or false")


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"must lie between {low} and {high}")
        return number

    return parse


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not 0 < number <= 86400:
        raise ValueError("must be more than 0 and at most 86400 seconds")
    return number


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


def _url(text: str) -> str:
    parts = urlsplit(text)
    try:
        parts.port
    except ValueError:
        raise ValueError("has a port that is no number from 0 to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with http:// or https://")
    return text.rstrip("/")


def _milvus(text: str) -> str:
    # Milvus Lite takes the path of a file instead of a URL.
    return text if text.endswith(".db") and "://" not in text else _url(text)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", text):
        raise ValueError("must be a letter or _ followed by letters, digits and _")
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text.strip()


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def _option(default: Any, parse: Callable[[str], Any], doc: str, secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """What can be set; the environment variable of each is its name in capitals."""

    api_host: str = _option("0.0.0.0", _text, "address that the service listens on")
    api_port: int = _option(8000, _number(1, 65535), "port that the service listens on")
    api_token: Secret = _option(Secret(), Secret, "bearer token that clients must send; empty: none", secret=True)
    vault_dir: Path = _option(Path("vault"), Path, "folder of the pages")
    watch_docs: bool = _option(True, _truth, "whether changes of the vault are followed")
    watch_interval: float = _option(2.0, _seconds, "seconds between two looks at the vault")
    chunk_size: int = _option(2500, _number(100, 16000), "characters a chunk has at most")
    chunk_overlap: int = _option(500, _number(0, 15999), "characters that neighbouring chunks share at most")
    retrieve_top_k: int = _option(5, _number(1, 100), "chunks that an answer is given")
    rag_template_path: Path | None = _option(
        None, _optional_path, "file with the instruction for the model; holds {context} and {question}"
    )
    vector_db: str = _option("milvus", _choice("milvus", "memory"), "where vectors are kept")
    milvus_uri: str = _option("http://localhost:19530", _milvus, "Milvus, or a file *.db for Milvus Lite")
    milvus_db: str = _option("default", _name, "database in Milvus")
    milvus_collection: str = _option("documents", _name, "collection in Milvus")
    milvus_token: Secret = _option(Secret(), Secret, "user:password or API key of Milvus", secret=True)
    embedding_provider: str = _option(
        "ollama", _choice("ollama", "litellm", "openai"), "who turns text into vectors"
    )
    completion_provider: str = _option("ollama", _choice("ollama", "litellm", "openai"), "who writes answers")
    ollama_url: str = _option("http://localhost:11434", _url, "Ollama")
    ollama_model: str = _option("llama3", _text, "model that writes answers, unless the provider is openai")
    embedding_model: str = _option(
        "mxbai-embed-large", _text, "model that embeds, unless the provider is openai"
    )
    litellm_api_url: str = _option("http://litellm:4000", _url, "LiteLLM")
    litellm_api_key: Secret = _option(
        Secret(), Secret, "key of LiteLLM; else LITELLM_API_TOKEN of the tokens file", secret=True
    )
    openai_api_base: str = _option("https://api.openai.com/v1", _url, "an OpenAI-compatible endpoint, with /v1")
    openai_api_key: Secret = _option(Secret(), Secret, "key of that endpoint", secret=True)
    openai_completion_model: str = _option("gpt-4o", _text, "model that writes answers with provider openai")
    openai_embedding_model: str = _option(
        "text-embedding-3-large", _text, "model that embeds with provider openai"
    )
    tokens_file: Path | None = _option(
        None, _optional_path, "file with NAME=value lines that the initialisation wrote"
    )
    request_timeout: float = _option(120.0, _seconds, "seconds without a sign of life before a model is given up")
    log_level: str = _option("info", _choice("debug", "info", "warning", "error"), "what is logged")
    log_format: str = _option("text", _choice("text", "json"), "how it is logged")

    def embedding_name(self) -> str:
        """The model that embeds."""
        return self.openai_embedding_model if self.embedding_provider == "openai" else self.embedding_model

    def completion_name(self) -> str:
        """The model that writes answers."""
        return self.openai_completion_model if self.completion_provider == "openai" else self.ollama_model

    def shown(self) -> dict[str, Any]:
        """All settings as plain values, secrets masked."""
        return {it.name: _shown(it, getattr(self, it.name)) for it in fields(self)}


def _shown(it: Any, value: Any) -> Any:
    if it.metadata["secret"]:
        return "***" if value else ""
    return str(value) if isinstance(value, Path) else value


OPTIONS = {it.name: it for it in fields(Settings)}


def config_file(environ: Mapping[str, str], home: Path | None, here: Path) -> Path | None:
    """The configuration file that applies, if any."""
    if named := environ.get("OBELISK_CONFIG"):
        return Path(named)
    places = [Path("/etc/obelisk/config.yaml"), here / "obelisk.yaml"]
    if home is not None:
        places.insert(0, home / ".config/obelisk/config.yaml")
    return next((place for place in places if place.is_file()), None)


def load(environ: Mapping[str, str], explicit: Mapping[str, str] | None = None, file: Path | None = None) -> Settings:
    """Reads the settings. Raises ConfigError with everything that is wrong."""
    problems: list[str] = []
    given: dict[str, tuple[str, str]] = {}  # name -> (where it was said, text)
    for name, value in _from_file(file, problems).items():
        given[name] = (f"{name} in {file}", value)
    for name in OPTIONS:
        upper = name.upper()
        # An empty variable is what compose makes of an unset one, so it says nothing.
        for variable in (f"OBELISK_RAG__{upper}", upper):
            if environ.get(variable):
                given[name] = (variable, environ[variable])
        if OPTIONS[name].metadata["secret"] and environ.get(f"{upper}_FILE"):
            if environ.get(upper):
                problems.append(f"{upper} and {upper}_FILE are both set: unset one")
            elif (secret := _secret(f"{upper}_FILE", environ[f"{upper}_FILE"], upper, problems)) is not None:
                given[name] = (f"{upper}_FILE", secret)
    if not environ.get("MILVUS_URI") and environ.get("MILVUS_HOST"):
        uri = f"http://{environ['MILVUS_HOST']}:{environ.get('MILVUS_PORT') or 19530}"
        given["milvus_uri"] = ("MILVUS_HOST and MILVUS_PORT", uri)
    for name, value in (explicit or {}).items():
        if name in OPTIONS:
            given[name] = (name, value)
        else:
            problems.append(f"{name} is not a setting: `obelisk rag config` lists them")
    values: dict[str, Any] = {}
    for name, (where, text) in given.items():
        try:
            values[name] = OPTIONS[name].metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{where} {error}" + ("" if OPTIONS[name].metadata["secret"] else f", not `{text}`"))
    settings = Settings(**values)
    if not settings.litellm_api_key and settings.tokens_file is not None:
        key = _line(settings.tokens_file, "LITELLM_API_TOKEN")
        settings = Settings(**{**values, "litellm_api_key": Secret(key)})
    _check_together(settings, values, problems)
    if problems:
        raise ConfigError(problems)
    return settings


def _check_together(settings: Settings, values: Mapping[str, Any], problems: list[str]) -> None:
    if settings.chunk_overlap >= settings.chunk_size:
        problems.append(
            f"CHUNK_OVERLAP ({settings.chunk_overlap}) must be less than CHUNK_SIZE ({settings.chunk_size})"
        )
    providers = (settings.embedding_provider, settings.completion_provider)
    if "openai" in providers and not settings.openai_api_key and "openai_api_base" not in values:
        problems.append("OPENAI_API_KEY or OPENAI_API_KEY_FILE must be set for the provider openai")
    if "litellm" in providers and not settings.litellm_api_key:
        problems.append("LITELLM_API_KEY, LITELLM_API_KEY_FILE or TOKENS_FILE must give a key for the provider litellm")
    if settings.rag_template_path is not None:
        try:
            template = settings.rag_template_path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            problems.append(f"RAG_TEMPLATE_PATH cannot be read: {error}")
        else:
            if "{context}" not in template or "{question}" not in template:
                problems.append("the file at RAG_TEMPLATE_PATH must hold {context} and {question}")


def _from_file(file: Path | None, problems: list[str]) -> dict[str, str]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{file} cannot be read: {error}")
        return {}
    section = content.get("rag", {}) if isinstance(content, dict) else content
    if content is None or section is None:
        return {}
    if not isinstance(section, dict):
        problems.append(f"{file} must hold a table `rag`")
        return {}
    known: dict[str, str] = {}
    for name, value in section.items():
        if name not in OPTIONS:
            problems.append(f"{name} in {file} is not a setting: `obelisk rag config` lists them")
        elif isinstance(value, (dict, list)):
            problems.append(f"{name} in {file} must be a single value")
        elif value is not None:
            known[name] = str(value)
    return known


def _secret(variable: str, path: str, name: str, problems: list[str]) -> str | None:
    """A secret from a file that holds nothing else, or `name=value` lines."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        # Its own words hold a byte of the secret.
        problems.append(f"{variable} names {path}, which is no text: byte {error.start + 1} is no UTF-8; write it anew")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{variable} cannot be read: {error}")
        return None
    if "\n" in text or text.startswith(f"{name}="):
        text = _value(text, name)
    if not text:
        problems.append(f"{variable} names {path}, which holds no secret")
        return None
    return text


def _line(path: Path, name: str) -> str:
    try:
        return _value(path.read_text(encoding="utf-8"), name)
    except (OSError, ValueError):
        return ""


def _value(text: str, name: str) -> str:
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and key.strip() == name:
            return value.strip().strip("'\"")
    return ""


assert all(it.default is not MISSING for it in OPTIONS.values()), "every setting has a default"
