from flask import Blueprint, request
from sqlalchemy import select

from blog import db
from blog.models import Post

bp = Blueprint("posts", __name__)


@bp.route("/")
def posts():
    found = db.session.scalars(select(Post).order_by(Post.id.desc()).limit(20))
    return [{"id": post.id, "title": post.title} for post in found]


@bp.route("/<int:post_id>")
def post(post_id):
    found = db.get_or_404(Post, post_id)
    return {"id": found.id, "title": found.title, "body": found.body}


@bp.route("/", methods=["POST"])
def create():
    new = Post(title=request.json["title"], body=request.json.get("body", ""))
    db.session.add(new)
    db.session.commit()
    return {"id": new.id}, 201
