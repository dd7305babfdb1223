package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/kuroko-faas/kuroko/bench/internal/packages"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
)

// mavenGoals compile the code and put the libraries beside it.
const mavenGoals = "compile dependency:copy-dependencies -DincludeScope=runtime"

// javaApp writes a Maven project whose plugins and libraries are those of
// Debian's Maven repository, on loopback.
func javaApp(ctx context.Context, b *bench, a *application) error {
	for _, p := range []string{"mvn", "javac"} {
		if _, err := exec.LookPath(p); err != nil {
			return errors.New(p + " is not installed: apt-get install maven default-jdk-headless")
		}
	}
	dir, err := packages.Maven(ctx, b.debian(), b.cache)
	if err != nil {
		return err
	}
	repository, err := services.Maven(dir, "usr/share/maven-repo")
	if err != nil {
		return err
	}
	b.servers = append(b.servers, repository)
	const mvn = "mvn -B -q -s settings.xml -Dmaven.repo.local="
	a.about = "10 libraries, compiled by Maven"
	a.packages = repository
	a.changed = "src/main/java/com/example/M%d.java"
	a.source = func(i int, noise []string) string {
		return around(fmt.Sprintf("package com.example;\n\nclass M%d {\n    static final String TEXT =\n", i), `        "`, noise, `" +`, "        \"\";\n}\n")
	}
	a.Command = mvn + ".m2 " + mavenGoals
	a.Layer = []string{"--base", a.images.base, "--output", "target", "--entry", `["/usr/bin/java","com.example.App"]`}
	a.faasYML = "functions:\n  web: {handler: com.example.App, contract: app, events: [{http: {path: /}}]}\n" +
		"build:\n  command: " + a.Command + "\n  output: target\npackage: {exclude: [\"src/**\", \".m2/**\", settings.xml, pom.xml, Dockerfile, \"target/maven-status/**\"]}\n"
	return a.write(map[string]string{
		"pom.xml":                            pom,
		"settings.xml":                       "<settings><mirrors><mirror><id>bench</id><mirrorOf>*</mirrorOf><url>http://" + repository.Host + "/</url></mirror></mirrors></settings>\n",
		"src/main/java/com/example/App.java": javaMain,
		"Dockerfile": "FROM " + a.images.build + " AS build\nUSER 0\nWORKDIR /src\nCOPY pom.xml settings.xml ./\n" +
			"RUN " + mvn + "/m2 " + mavenGoals + "\n" +
			"COPY src src\nRUN " + mvn + "/m2 compile\n" +
			"FROM " + a.images.base + "\nWORKDIR /app\nCOPY --from=build /src/target/dependency target/dependency\nCOPY --from=build /src/target/classes target/classes\n" +
			"ENV PORT=8080 CLASSPATH=/app/target/classes:/app/target/dependency/*\nENTRYPOINT [\"/usr/bin/java\",\"com.example.App\"]\n",
	})
}

const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>com.example</groupId>
  <artifactId>app</artifactId>
  <version>1.0.0</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency><groupId>com.fasterxml.jackson.core</groupId><artifactId>jackson-databind</artifactId><version>2.14.0</version></dependency>
    <dependency><groupId>com.google.guava</groupId><artifactId>guava</artifactId><version>31.1-jre</version></dependency>
    <dependency><groupId>org.apache.commons</groupId><artifactId>commons-lang3</artifactId><version>3.12.0</version></dependency>
    <dependency><groupId>ch.qos.logback</groupId><artifactId>logback-classic</artifactId><version>1.2.11</version></dependency>
  </dependencies>
  <build><plugins>
    <plugin><artifactId>maven-compiler-plugin</artifactId><version>3.10.1</version></plugin>
    <plugin><artifactId>maven-resources-plugin</artifactId><version>3.3.0</version></plugin>
    <plugin><artifactId>maven-dependency-plugin</artifactId><version>3.5.0</version></plugin>
  </plugins></build>
</project>
`

const javaMain = `package com.example;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Map;

public class App {
    public static void main(String[] args) throws Exception {
        byte[] answer = new ObjectMapper().writeValueAsBytes(Map.of("hello", "world"));
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(System.getenv().getOrDefault("PORT", "8080"))), 0);
        server.createContext("/", e -> {
            e.sendResponseHeaders(200, answer.length);
            e.getResponseBody().write(answer);
            e.close();
        });
        server.start();
    }
}
`
