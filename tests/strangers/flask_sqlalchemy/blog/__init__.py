from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from config import Config

db = SQLAlchemy()
migrate = Migrate()


def create_app(config_class=Config):
    app = Flask(__name__)
    app.config.from_object(config_class)
    db.init_app(app)
    migrate.init_app(app, db)

    from blog.posts import bp

    app.register_blueprint(bp, url_prefix="/posts")

    @app.route("/")
    def index():
        return {"name": "blog"}

    return app
