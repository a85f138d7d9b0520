from fastapi import FastAPI

from app.config import settings
from app.routes import router

app = FastAPI(title=settings.PROJECT_NAME, openapi_url=f"{settings.API_STR}/openapi.json")


@app.get("/health")
def health():
    return {"status": "ok"}


app.include_router(router, prefix=settings.API_STR)
