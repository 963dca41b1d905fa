# One image for the dashboard and the workers: which of them a container is, docker-compose.yml says.
# Checked for form by tests/setup/test_compose.py; no container engine has built it in this project's tests.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

# A layer of its own: the requirements change seldom, the code often.
COPY requirements.txt .
RUN pip install --requirement requirements.txt

# Triton builds its launcher with a C compiler when a kernel first runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY . .
RUN useradd --create-home plumbline && mkdir /data && chown plumbline /data
USER plumbline
ENV PLUMBLINE_DATA_DIR=/data
EXPOSE 8501

# Inside a container the server listens on every interface; what reaches it is decided where the port is published.
CMD ["python", "-m", "streamlit", "run", "app.py", "--server.address", "0.0.0.0", "--server.port", "8501"]
