from functools import lru_cache

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL


class Database(BaseModel):
    hostname: str = "postgres"
    port: int = 5432
    username: str = "postgres"
    password: SecretStr = SecretStr("passwd-change-me")
    db: str = "postgres"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_nested_delimiter="__", extra="ignore")

    database: Database = Field(default_factory=Database)
    log_level: str = "INFO"

    def url(self, driver: str = "asyncpg") -> URL:
        return URL.create(
            drivername=f"postgresql+{driver}",
            username=self.database.username,
            password=self.database.password.get_secret_value(),
            host=self.database.hostname,
            port=self.database.port,
            database=self.database.db,
        )


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    return Settings()
